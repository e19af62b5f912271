"""Who runs the tasks of a stage: this process or Ray workers."""
