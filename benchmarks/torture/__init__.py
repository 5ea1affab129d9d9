"""The torture report: named faults, and what becomes of the work of ten ways to run it on connections.

``make torture`` runs everything and writes README.rst beside this file. How it is made:

1. `faults` names what goes wrong. A fault is a function over a `stage.Stage`: it submits work, and makes trouble.
2. `subjects` are the ways to run work on connections, each set up as its documentation says.
3. `tasks` are what the work does. A task is a generator of statements, so the same one runs on threads and coroutines.
4. A cell of the table is one fault and one subject. `patient` runs it, in a process of its own, through a `proxy`
   that makes the trouble of networks. `referee` starts that process, ends it when its time is over, and asks the
   server what was really done.
5. `verdict` turns the counts into a word. No verdict is given by hand.
6. `report` writes the page.
"""
