"""What insula list says, in English."""

TEXTS = {
    "name": "NAME",
    "size": "SIZE",
    "licence": "LICENCE",
    "where": "WHERE",
    "incomplete": "incomplete",
    "origin_store": "store",
    "origin_catalogue": "not here yet: insula pull",
    "unusable": "unusable",
    "unusable_count": "{count} file(s) are cut short or damaged and cannot be used",
}
