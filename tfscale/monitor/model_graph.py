"""A Keras model as a graph of its layers for TensorBoard, made of its configuration alone."""


def graph_of(config):
    """Return the layers of a model and what leads from one to another.

    Args:
        config: what `get_config()` of a Sequential or functional `keras.Model` returned.

    Returns:
        A `GraphDef` message; None for a model that does not say how its layers hang together.
    """
    from tensorboard.compat.proto import graph_pb2

    graph = graph_pb2.GraphDef()
    _add(graph, config, "", [])
    return graph if graph.node else None


def _add(graph, config, scope, outside):
    """Add the layers of a model, below a scope, that gets its inputs from nodes outside.

    Returns:
        The names of the nodes that give its outputs.
    """
    layers = config.get("layers")
    if not isinstance(layers, list) or not all("class_name" in layer for layer in layers):
        return outside
    is_chain = all("inbound_nodes" not in layer for layer in layers)
    outputs, last = {}, outside
    for layer in layers:
        own = layer["config"]
        name = own.get("name", layer["class_name"])
        if is_chain:
            sources = last
        else:
            keys = list(dict.fromkeys(_origins(layer["inbound_nodes"])))
            sources = [node for key in keys for node in outputs.get(key, [])] or outside
        path = f"{scope}{name}"
        if isinstance(own.get("layers"), list):
            last = _add(graph, own, f"{path}/", sources)
        else:
            node = graph.node.add(name=path, op=layer["class_name"], input=sources)
            for key, value in own.items():
                if isinstance(value, (bool, int, float, str)) and key != "name":
                    node.attr[key].s = str(value).encode()
            last = [path]
        outputs[name] = last
    return last


def _origins(nested):
    """The names of the layers that Keras' saved calls of a layer take their tensors from."""
    if isinstance(nested, dict):
        if nested.get("class_name") == "__keras_tensor__":
            yield nested["config"]["keras_history"][0]
        else:
            for value in nested.values():
                yield from _origins(value)
    elif isinstance(nested, (list, tuple)):
        for value in nested:
            yield from _origins(value)
