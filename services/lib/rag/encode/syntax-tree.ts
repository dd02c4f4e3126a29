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
import { GRAMMARS, type Grammar, grammarOf, loadGrammar, type Node, type Parser, type ParseState } from './grammars.ts';

/**
 * Longest code that is parsed, in UTF-16 units: ten lines of code have some 400. All parsers share one memory, which
 * overflows at 10,000 characters of hostile C++ (`(a)*` repeated); after that no parser works.
 */
const MAX_CHARACTERS = 2_000;
/**
 * Most words and punctuation marks of code that is parsed. A step of a parser cannot be interrupted, and its time grows
 * with the square of their number: in Python, 666 lines of C's comments (`/*` repeated) took 165 ms of CPU in one step,
 * and 300 of these marks take 10 to 15 ms. Ten lines of code have some 75; of 220,000 chunks of Python, TypeScript,
 * JavaScript and C fewer than 0.7 % have more than 300, mostly tables of numbers.
 */
const MAX_MARKS = 300;
const MARK = /[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;
/**
 * Steps that a parser may take, 10 to 20 ms; it reports a step every so many operations. Of 8,000 chunks of Python,
 * TypeScript, JavaScript and C++ none takes more than 21, and none more than 5 from its first error on. Nonsense takes
 * up to 60,000 steps or 4.8 s (`)-` repeated, in Rust). Those after an error are long. The limits are not a time,
 * because then an index would depend on how busy the machine was.
 */
const MAX_STEPS = 120;
const MAX_STEPS_AFTER_ERROR = 10;

/** If more than this share of a text lies in parse errors, its tree is of no use. */
const MAX_ERROR_SHARE = 0.5;

type TreeToken =
  /** The source text of a leaf. */
  | { readonly text: string }
  /** `AST#<type>#Left` or `AST#<type>#Right`. */
  | { readonly mark: string };

export class SyntaxTrees {
  readonly #parsers: ReadonlyMap<Grammar, Parser>;

  private constructor(parsers: ReadonlyMap<Grammar, Parser>) {
    this.#parsers = parsers;
  }

  /** Loads all grammars. */
  static async load(): Promise<SyntaxTrees> {
    const parsers = new Map<Grammar, Parser>();
    for (const grammar of GRAMMARS) parsers.set(grammar, (await loadGrammar(grammar)).parser);
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
    if (text.length > MAX_CHARACTERS || hasMoreMarks(text, MAX_MARKS)) return undefined;
    const tree = parser.parse(text, null, { progressCallback: stepLimit() });
    if (!tree) {
      parser.reset(); // otherwise the parser would go on with this text when it is given the next one
      return undefined;
    }
    try {
      if (errorLength(tree.rootNode) > MAX_ERROR_SHARE * text.length) return undefined;
      const tokens = linearise(tree.rootNode, text);
      return tokens.some((token) => 'text' in token) ? tokens : undefined;
    } finally {
      tree.delete();
    }
  }

  dispose(): void {
    for (const parser of this.#parsers.values()) parser.delete();
  }
}

function hasMoreMarks(text: string, most: number): boolean {
  let marks = 0;
  for (const _ of text.matchAll(MARK)) if (++marks > most) return true;
  return false;
}

/** Tells a parser, at each of its steps, whether it must give up. */
function stepLimit(): (state: ParseState) => boolean {
  let steps = 0;
  let afterError = 0;
  return ({ hasError }) => ++steps > MAX_STEPS || (hasError && ++afterError > MAX_STEPS_AFTER_ERROR);
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
