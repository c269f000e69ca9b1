"""Apache Airflow provider for Brevo (formerly Sendinblue) Conversations."""

__version__ = "0.1.0"
