"""Lo que dice insula list, en español."""

TEXTS = {
    "name": "NOMBRE",
    "size": "TAMAÑO",
    "licence": "LICENCIA",
    "where": "DÓNDE",
    "incomplete": "incompleto",
    "origin_store": "almacén",
    "origin_catalogue": "aún no está: insula pull",
    "unusable": "inservible",
    "unusable_count": "{count} fichero(s) están incompletos o dañados, y no se pueden usar",
}
