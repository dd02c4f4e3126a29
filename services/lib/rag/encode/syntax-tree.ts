/**
 * Turns code into the token sequence that stands for its syntax tree, in UniXcoder's form.
 *
 * The sequence is in preorder: a leaf, or a string literal, is its source text; a node with one child is that child;
 * any other node stands around its children as `AST#<type>#Left` and `AST#<type>#Right`. Comments and docstrings are
 * left out by their nodes. The code that UniXcoder's and LlavaCode's authors share does it differently: it deletes `#`
 * and whatever looks like a comment from the text beforehand, even within strings, and cuts lines with characters
 * beyond ASCII at the wrong places, because it applies positions in bytes to characters. Here positions are those of
 * JavaScript's strings.
 */
import { BoundedParser } from './bounded-parser.ts';
import { GRAMMARS, type Grammar, grammarOf, type Node } from './grammars.ts';

/** If more than this share of a text lies in parse errors, its tree is of no use. */
const MAX_ERROR_SHARE = 0.5;

type TreeToken =
  /** The source text of a leaf. */
  | { readonly text: string }
  /** `AST#<type>#Left` or `AST#<type>#Right`. */
  | { readonly mark: string };

export class SyntaxTrees {
  readonly #parsers: ReadonlyMap<Grammar, BoundedParser>;

  private constructor(parsers: ReadonlyMap<Grammar, BoundedParser>) {
    this.#parsers = parsers;
  }

  /** Loads all grammars. */
  static async load(): Promise<SyntaxTrees> {
    const parsers = new Map<Grammar, BoundedParser>();
    for (const grammar of GRAMMARS) parsers.set(grammar, await BoundedParser.load(grammar));
    return new SyntaxTrees(parsers);
  }

  /**
   * The sequence for a piece of code; undefined if there is no grammar for its file, if it is too long or would take
   * too long, if it does not parse, or if it holds nothing but comments.
   * @param path its ending tells the language.
   */
  sequence(path: string, code: string): TreeToken[] | undefined {
    const grammar = grammarOf(path);
    const parser = grammar && this.#parsers.get(grammar);
    if (!parser) return undefined;
    const text = dedented(code);
    const tree = parser.parse(text);
    if (!tree) return undefined;
    try {
      if (errorLength(tree.rootNode) > MAX_ERROR_SHARE * text.length) return undefined;
      const tokens = linearise(tree.rootNode, text);
      return tokens.some((token) => 'text' in token) ? tokens : undefined;
    } finally {
      tree.delete();
    }
  }

  dispose(): void {
    for (const parser of this.#parsers.values()) parser.dispose();
  }
}

/** Removes the common indentation, so that a chunk from inside a block parses like one at the margin. */
function dedented(code: string): string {
  const lines = code.split('\n');
  const indents = lines.filter((line) => line.trim() !== '').map((line) => line.length - line.trimStart().length);
  const common = Math.min(...indents);
  return common === 0 || indents.length === 0 ? code : lines.map((line) => line.slice(common)).join('\n');
}

// Both walks keep a stack of their own, because code may be nested deeply, for instance a sum of hundreds of terms.

/** Number of characters in the outermost parse errors. */
function errorLength(root: Node): number {
  let length = 0;
  const todo = [root];
  for (let node = todo.pop(); node; node = todo.pop()) {
    if (node.isError) length += node.endIndex - node.startIndex;
    else if (node.hasError) for (const child of node.children) if (child) todo.push(child);
  }
  return length;
}

function linearise(root: Node, source: string): TreeToken[] {
  const tokens: TreeToken[] = [];
  /** Nodes to visit, and the closing marks of nodes whose children come before. */
  const todo: (Node | { readonly mark: string })[] = [root];
  for (let next = todo.pop(); next; next = todo.pop()) {
    if ('mark' in next) {
      tokens.push(next);
      continue;
    }
    const { type } = next;
    if (type.includes('comment') || isDocstring(next)) continue;
    if (next.childCount === 0 || type.includes('string')) {
      const text = source.slice(next.startIndex, next.endIndex);
      if (text.trim() !== '') tokens.push({ text });
      continue;
    }
    if (next.childCount !== 1) {
      tokens.push({ mark: `AST#${type}#Left` });
      todo.push({ mark: `AST#${type}#Right` });
    }
    for (const child of next.children.toReversed()) if (child) todo.push(child);
  }
  return tokens;
}

/** Whether a node is a string that is a statement by itself. */
const isDocstring = (node: Node) =>
  node.type === 'expression_statement' && node.childCount === 1 && node.firstChild?.type === 'string';
