/**
 * Code → the sequence that stands for its syntax tree, in UniXcoder's form; the only importer of tree-sitter.
 *
 * Preorder: a leaf, or a string literal, is its source text; a node with one child is that child; any other node stands
 * around its children as `AST#<type>#Left` and `AST#<type>#Right`. Comments and docstrings are left out, by their nodes:
 * the code that UniXcoder's and LlavaCode's authors share deletes `#` and whatever looks like a comment from the text
 * beforehand, within strings too, and cuts lines with characters beyond ASCII at the wrong places (positions in bytes,
 * applied to characters). Here positions are those of JavaScript's strings.
 */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { extname } from 'node:path';
import TreeSitter, { type Node, type Parser } from '@vscode/tree-sitter-wasm';

/** Grammars by the endings of file names. C is parsed as C++, of which it is nearly a part: the package has no grammar of C. */
const GRAMMAR_ENDINGS = {
  python: ['.py', '.pyi', '.pyw'],
  typescript: ['.ts', '.mts', '.cts'],
  tsx: ['.tsx'],
  javascript: ['.js', '.jsx', '.mjs', '.cjs'],
  java: ['.java'],
  go: ['.go'],
  rust: ['.rs'],
  cpp: ['.c', '.h', '.cc', '.cpp', '.cxx', '.hh', '.hpp', '.hxx'],
  'c-sharp': ['.cs'],
} as const;
type Grammar = keyof typeof GRAMMAR_ENDINGS;
const GRAMMAR_OF = new Map<string, Grammar>(
  Object.entries(GRAMMAR_ENDINGS).flatMap(([grammar, endings]) =>
    endings.map((ending) => [ending, grammar as Grammar] as const),
  ),
);

/**
 * UTF-16 units; ten lines of code have some 400, and encoders look no farther. All parsers share one memory, which runs
 * over in 10,000 characters of C++ (`(a)*` again and again): none of them parses anything after that.
 */
const MAX_CHARACTERS = 2_000;
/**
 * Steps of a parser (it reports every so many operations), 20 ms: ten lines of this project take 14 at most, 4,000
 * characters of code 112, and of nonsense (`)-` again and again, in Rust) 60,000, 4.8 s. Not a time, by which an index
 * would come out otherwise on a busy machine.
 */
const MAX_STEPS = 250;

/** Where more of a text than this lies in errors, the tree says nothing about it. */
const MAX_ERROR_SHARE = 0.5;

export type TreeToken =
  /** Source text of a leaf. */
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
    await TreeSitter.Parser.init();
    const { resolve } = createRequire(import.meta.url);
    const parsers = new Map<Grammar, Parser>();
    for (const grammar of Object.keys(GRAMMAR_ENDINGS) as Grammar[]) {
      const wasm = await readFile(resolve(`@vscode/tree-sitter-wasm/wasm/tree-sitter-${grammar}.wasm`));
      const parser = new TreeSitter.Parser();
      parser.setLanguage(await TreeSitter.Language.load(wasm));
      parsers.set(grammar, parser);
    }
    return new SyntaxTrees(parsers);
  }

  /**
   * The sequence of a piece of code; undefined where there is no grammar for its file, where it is too long or does not
   * parse, or where nothing but comments is left of it.
   * @param path tells the language by its ending.
   */
  sequence(path: string, code: string): TreeToken[] | undefined {
    const grammar = GRAMMAR_OF.get(extname(path).toLowerCase());
    const parser = grammar && this.#parsers.get(grammar);
    if (!parser) return undefined;
    const text = dedented(code);
    if (text.length > MAX_CHARACTERS) return undefined;
    let steps = 0;
    const tree = parser.parse(text, null, { progressCallback: () => ++steps > MAX_STEPS });
    if (!tree) {
      parser.reset(); // or it would go on with this text when it is given the next
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

/** A chunk from the middle of a block parses like one at its margin. */
function dedented(code: string): string {
  const lines = code.split('\n');
  const indents = lines.filter((line) => line.trim() !== '').map((line) => line.length - line.trimStart().length);
  const common = Math.min(...indents);
  return common === 0 || indents.length === 0 ? code : lines.map((line) => line.slice(common)).join('\n');
}

// Both walks keep a stack of their own: code may be nested deep, a sum of hundreds of terms for one.

/** Characters of the outermost errors. */
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
  /** Nodes, and the marks that close those whose children come before. */
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

/** A string that is a statement by itself. */
const isDocstring = (node: Node) =>
  node.type === 'expression_statement' && node.childCount === 1 && node.firstChild?.type === 'string';
