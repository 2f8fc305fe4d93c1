"""What people see: terminal tables and progress, pictures, pages. The only room that knows Rich, with the commands."""
