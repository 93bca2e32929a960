raise ImportError("Isaac's interpreter does not have ray")
