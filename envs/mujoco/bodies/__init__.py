"""Robots: own MJCF of primitive shapes after published kinematics, and what their actions mean."""
