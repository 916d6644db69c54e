/* Sphinx puts this after its own scorer: pages of the book come first, those of the API below them. */
Scorer.score = ([page, , , , score]) => score - (page.startsWith("api/") ? 1000 : 0);
// Summaries are read from the pages found, which a browser does not do for files.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
