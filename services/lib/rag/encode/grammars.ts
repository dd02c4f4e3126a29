/**
 * The grammars that code is parsed with, by the ending of a file's name. This file is the only importer of tree-sitter.
 * All parsers of a process share one memory.
 */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { extname } from 'node:path';
import TreeSitter, { type Language, type Parser, type Query } from '@vscode/tree-sitter-wasm';

export type { Node, Parser, ParseState, Query, Tree } from '@vscode/tree-sitter-wasm';

/**
 * Grammars, and the endings of file names that they parse. C is parsed as C++, nearly a superset: there is no grammar
 * for C.
 */
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
export type Grammar = keyof typeof GRAMMAR_ENDINGS;
const GRAMMAR_OF = new Map<string, Grammar>(
  Object.entries(GRAMMAR_ENDINGS).flatMap(([grammar, endings]) =>
    endings.map((ending) => [ending, grammar as Grammar] as const),
  ),
);

export const GRAMMARS = Object.keys(GRAMMAR_ENDINGS) as Grammar[];

/** The grammar of a file; undefined where there is none. */
export const grammarOf = (path: string): Grammar | undefined => GRAMMAR_OF.get(extname(path).toLowerCase());

/** Names of languages as editors write them, LSP's identifiers and short forms, besides those of the grammars. */
const LANGUAGE_NAMES: Readonly<Record<string, Grammar>> = {
  py: 'python',
  python3: 'python',
  ts: 'typescript',
  typescriptreact: 'tsx',
  js: 'javascript',
  javascriptreact: 'javascript',
  jsx: 'javascript',
  golang: 'go',
  rs: 'rust',
  c: 'cpp',
  'c++': 'cpp',
  csharp: 'c-sharp',
  cs: 'c-sharp',
};

/** The grammar of a language by its name, in any case; undefined where there is none. */
export function grammarNamed(language: string): Grammar | undefined {
  const name = language.toLowerCase();
  if (Object.hasOwn(GRAMMAR_ENDINGS, name)) return name as Grammar;
  return Object.hasOwn(LANGUAGE_NAMES, name) ? LANGUAGE_NAMES[name] : undefined;
}

/**
 * Lines that are common in one language and are not written in the others. TypeScript stands for JavaScript as well,
 * which it nearly contains.
 */
const TELLING_LINES: readonly (readonly [Grammar, RegExp])[] = [
  [
    'python',
    /^[ \t]*(?:(?:async )?def \w+\(.*|(?:el)?if [^({].*:|class \w+(?:\(.*\))?:|from [\w.]+ import .*)[ \t]*$/gm,
  ],
  ['go', /^(?:package \w+|func (?:\(.*?\) )?\w+\(.*|import \()[ \t]*\r?$|^\t+\w+(?:, \w+)* := /gm],
  ['rust', /^[ \t]*(?:pub )?fn \w+|^[ \t]*let mut |^use [\w:]+(?:::|;)|^impl\b/gm],
  ['cpp', /^[ \t]*#(?:include|define|ifdef|ifndef)\b|\bstd::/gm],
  ['java', /^import [\w.]+;|^package [\w.]+;|\bpublic static void main\b|^[ \t]*@Override\b/gm],
  ['c-sharp', /^using [\w.]+;|^namespace [\w.]+|\{ get; /gm],
  ['typescript', /^import .* from ['"]|^[ \t]*(?:export )?(?:const|let|async function|function|interface) \w+/gm],
];
/** UTF-16 units at the end of a text that are looked at. */
const GUESS_CHARACTERS = 4_096;

/** The grammar of a piece of code whose language nobody names; undefined where its lines do not tell. */
export function guessGrammar(code: string): Grammar | undefined {
  const end = code.slice(-GUESS_CHARACTERS);
  const votes = TELLING_LINES.map(([grammar, line]) => ({ grammar, count: end.match(line)?.length ?? 0 }));
  const [best, second] = votes.toSorted((a, b) => b.count - a.count);
  return best && best.count > (second?.count ?? 0) ? best.grammar : undefined;
}

export interface LoadedGrammar {
  readonly language: Language;
  /** The caller must delete it. */
  readonly parser: Parser;
}

export async function loadGrammar(grammar: Grammar): Promise<LoadedGrammar> {
  await TreeSitter.Parser.init();
  const { resolve } = createRequire(import.meta.url);
  const language = await TreeSitter.Language.load(
    await readFile(resolve(`@vscode/tree-sitter-wasm/wasm/tree-sitter-${grammar}.wasm`)),
  );
  const parser = new TreeSitter.Parser();
  parser.setLanguage(language);
  return { language, parser };
}

/** A query in tree-sitter's language of patterns. The caller must delete it. */
export const compileQuery = (language: Language, pattern: string): Query => new TreeSitter.Query(language, pattern);
