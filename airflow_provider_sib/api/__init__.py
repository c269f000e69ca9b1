"""Speak with Brevo's Conversations API: HTTP only, nothing of Airflow, nothing of campaigns.

``errors`` holds what can go wrong (standard library only), ``models`` what comes back, ``calls`` one function for
each endpoint, ``wire`` every rule of reading and repeating, ``client`` and ``aio`` the two clients. Importing this
package imports none of them.
"""
