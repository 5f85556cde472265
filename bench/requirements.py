def page(config):
    return ""
