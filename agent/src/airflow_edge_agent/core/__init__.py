"""What the agent decides, without doing any of it.

Events go in, instructions come out (:class:`~airflow_edge_agent.core.agent.AgentCore`). Nothing here reads a clock, a
file or a socket: time is an argument, chance is an argument.
"""
