"""From a run to what people read: tables, and progress while it goes on."""
