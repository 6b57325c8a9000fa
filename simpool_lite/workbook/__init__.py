"""Execute the workbook and show what came out.

``notebooks`` finds the notebooks and reads what they say about themselves, ``runner`` executes them,
``report`` makes the HTML pages, ``mathml`` their formulas, ``editions`` exercise sheets and slides. All of it needs
the packages of ``pip install "simpool-lite[notebooks]"``, so nothing outside this folder imports it unless asked to.
``exercises`` is what a notebook's own cells check answers with: it needs no more than the package, and knows it.
"""
