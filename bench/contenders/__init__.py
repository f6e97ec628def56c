"""One file for each contender. A module lists its CASES, {name: a line for the report}, and gives for a case:

  UID                                    the user that it runs as, whose connections are not redirected
  ready(case)                            (port, path) on the pod's loopback that answers 200 when it is ready
  program()                              the program that is measured, or None when it is not there
  redirect(pod)                          redirects the pod's connections
  prepare(processes, case, tracing)      optional: starts what it needs beside it, a control plane for example
  start(processes, case, pod, tracing)   the process of the pod "client" or "server"

`tracing`: one request in a hundred is traced, and its spans go to port 4317 of the pod "control".
"""
import importlib, pkgutil


def all_cases():
    """{case: module}, in the order of the files' names."""
    found = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        found.update({case: module for case in module.CASES})
    return found
