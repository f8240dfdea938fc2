"""Source text cut by its syntax tree: bodies taken out, definitions removed, a student's file completed.

Only the lines of what is cut change: comments, blank lines and the rest of a file stay as they are. So the solution
needs no markers.
"""

import ast
import textwrap

WIDTH = 120


def definitions(tree):
    """{"function" or "Class.method" or "Class": (node, the class that it stands in, or None)}"""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = (node, None)
        if isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            found |= {f"{node.name}.{child.name}": (child, node) for child in methods}
    return found


def take_out(source, messages, remove=()):
    """The source with these bodies replaced by a NotImplementedError, and these definitions removed.

    messages: {name: what the error says}. The signature and the docstring of each function stay. Raises ValueError for
    a name that the source does not have.
    """
    known, lines, edits = definitions(ast.parse(source)), source.split("\n"), []
    for name in [*messages, *remove]:
        if name not in known:
            raise ValueError(f"there is no {name} in the file: correct the table of exercises")
    for name, message in messages.items():
        node = known[name][0]
        edits.append((_first_line_of_body(node, lines), node.end_lineno, _refusal(node, message)))
    for name in remove:
        node = known[name][0]
        first, last = _span(node)
        while last < len(lines) and not lines[last].strip():  # with the blank lines that part it from the next
            last += 1
        edits.append((first, last, []))
    return _edited(lines, edits)


def _first_line_of_body(node, lines):
    """Counted from 1: the line after the docstring or, without one, after the signature."""
    if ast.get_docstring(node) is not None:
        return node.body[0].end_lineno + 1
    line = node.body[0].lineno
    while not lines[line - 2].split("#")[0].rstrip().endswith(":"):  # a comment above the first statement goes, too
        line -= 1
    return line


def _refusal(node, message):
    """The lines that stand for a body, as the formatter would set them."""
    indent, text = " " * (node.col_offset + 4), '"' + message.replace("\\", "\\\\").replace('"', '\\"') + '"'
    line = f"{indent}raise NotImplementedError({text})"
    if len(line) <= WIDTH:
        return [line]
    return [f"{indent}raise NotImplementedError(", f"{indent}    {text}", f"{indent})"]


def _span(node):
    """The first and the last line of a definition, decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno


def _edited(lines, edits):
    """The text of the lines with edits made: (first line, last line, new lines), counted from 1."""
    for first, last, new in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[first - 1 : last] = new
    return "\n".join(lines).rstrip("\n") + "\n"


def complete(student, base, names):
    """The student's source with these definitions as `base` has them, and the imports of `base`.

    Everything else stays the student's: helpers, constants, imports. A definition that the student does not have is
    added at the end of its class, or of the file. Raises SyntaxError (also for too deep a text), or ValueError where
    the class is gone.
    """
    theirs, ours = ast.parse(student), ast.parse(base)
    lines, edits = student.split("\n"), []
    known, wanted = definitions(theirs), definitions(ours)
    for name in names:
        node, _ = wanted[name]
        first, last = _span(node)
        segment = textwrap.dedent("\n".join(base.split("\n")[first - 1 : last]))
        edits.append(_placed(name, segment, known, lines))
    edits.append(_imports(theirs, ours, base))
    return _edited(lines, edits)


def _placed(name, segment, known, lines):
    """The edit that brings a definition into the student's file."""
    if name in known:
        node, _ = known[name]
        first, last = _span(node)
        indent = lines[node.lineno - 1][: len(lines[node.lineno - 1]) - len(lines[node.lineno - 1].lstrip())]
    elif "." in name:
        parent = name.split(".")[0]
        if parent not in known:
            raise ValueError(f"the class {parent} is gone: leave it in the file")
        sibling = known[parent][0].body[0]
        first, last = known[parent][0].end_lineno + 1, known[parent][0].end_lineno
        indent = lines[sibling.lineno - 1][: sibling.col_offset]
    else:
        first, last, indent = len(lines) + 1, len(lines), ""
    return first, last, textwrap.indent(segment, indent).split("\n")


def _imports(theirs, ours, base):
    """The edit that puts the imports of `base` before the student's first statement."""
    place = 1
    for node in theirs.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            place = _span(node)[0] if hasattr(node, "decorator_list") else node.lineno
            break
    imports = [ast.get_source_segment(base, n) for n in ours.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return place, place - 1, imports
