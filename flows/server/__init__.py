"""`serve`: servers, start page, deployments, schedules, automations, worker."""
