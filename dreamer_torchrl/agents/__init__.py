"""An agent, its policy, and what can be made of them."""
