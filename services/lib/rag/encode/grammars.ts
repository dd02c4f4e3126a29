/**
 * The grammars that code is parsed with, by the ending of a file's name. This file is the only importer of tree-sitter.
 * All parsers of a process share one memory.
 */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { extname } from 'node:path';
import TreeSitter, { type Language, type Parser, type Query } from '@vscode/tree-sitter-wasm';

export type { Node, Parser, ParseState, Query } from '@vscode/tree-sitter-wasm';

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
