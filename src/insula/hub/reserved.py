"""Names that a person may not give: they say where a model comes from, or whose it is."""

from __future__ import annotations

from insula.errors import ConfigError
from insula.hub import catalog, local
from insula.hub.names import HUB_HOSTS, REGISTRY_HOSTS, StoreName
from insula.locale import text


def refuse_reserved(name: StoreName) -> None:
    """Raise ConfigError for a name of the catalogue, a hub's, or another program's."""
    place = name.parts[0].lower() if len(name.parts) > 1 else None
    places = (*HUB_HOSTS, *REGISTRY_HOSTS, "pypi", *local.PROGRAMS)
    if place in places or catalog.find(str(name)) is not None:
        raise ConfigError(text("hub.reserved_name", name=name, places=", ".join(places)))
