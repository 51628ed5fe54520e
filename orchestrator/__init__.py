"""From the sweep file to the plan, the launch and the status; the command line."""
