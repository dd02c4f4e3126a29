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

/** Grammars by the endings of file names. C is parsed as C++, of which it is nearly a part. */
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
   * The sequence of a piece of code; undefined where there is no grammar for its file, where it does not parse, or where
   * nothing but comments is left of it.
   * @param path tells the language by its ending.
   */
  sequence(path: string, code: string): TreeToken[] | undefined {
    const grammar = GRAMMAR_OF.get(extname(path).toLowerCase());
    const parser = grammar && this.#parsers.get(grammar);
    if (!parser) return undefined;
    const text = dedented(code);
    const tree = parser.parse(text);
    if (!tree) return undefined;
    try {
      if (errorLength(tree.rootNode) > MAX_ERROR_SHARE * text.length) return undefined;
      const tokens: TreeToken[] = [];
      linearise(tree.rootNode, text, tokens);
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

/** Characters of the outermost errors. */
function errorLength(node: Node): number {
  if (!node.hasError) return 0;
  if (node.isError) return node.endIndex - node.startIndex;
  return node.children.reduce((sum, child) => sum + (child ? errorLength(child) : 0), 0);
}

function linearise(node: Node, source: string, into: TreeToken[]): void {
  const { type } = node;
  if (type.includes('comment') || isDocstring(node)) return;
  const isLeaf = node.childCount === 0 || type.includes('string');
  if (isLeaf) {
    const text = source.slice(node.startIndex, node.endIndex);
    if (text.trim() !== '') into.push({ text });
    return;
  }
  const marked = node.childCount !== 1;
  if (marked) into.push({ mark: `AST#${type}#Left` });
  for (const child of node.children) if (child) linearise(child, source, into);
  if (marked) into.push({ mark: `AST#${type}#Right` });
}

/** A string that is a statement by itself. */
const isDocstring = (node: Node) =>
  node.type === 'expression_statement' && node.childCount === 1 && node.firstChild?.type === 'string';
