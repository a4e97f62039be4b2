"""What a call needs beside time, a file each; measured by `autoprune.measuring.resources`."""
