"""Lo que dice insula list, en español."""

TEXTS = {
    "name": "NOMBRE",
    "size": "TAMAÑO",
    "licence": "LICENCIA",
    "where": "DÓNDE",
    "incomplete": "incompleto",
    "origin_store": "almacén",
    "origin_catalogue": "aún no está: insula pull",
}
