"""Where teachers, students and text come from: the files that ship with the course, this disk, the hub.

========  =======================================================================
assets    the files that ship with the course, checked against their checksums
teachers  models to compress, and trained students
corpora   text as sequences of tokens
hub       downloads, checked, and errors that say what to do
========  =======================================================================
"""
