"""How weights are quantised: which scheme a layer gets, and how many bytes it has."""
