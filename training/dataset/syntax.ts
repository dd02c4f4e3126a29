/** What the filters and the choice of holes need to know of a file's syntax, from its tree. */

import { ServingError } from '../../services/lib/process/errors.ts';
import { reasonOf } from '../../services/lib/process/os-errors.ts';
import {
  compileQuery,
  type Grammar,
  grammarOf,
  loadGrammar,
  type Parser,
  type Query,
} from '../../services/lib/rag/encode/grammars.ts';
import type { LANGUAGES } from '../choices.ts';

export type LanguageName = (typeof LANGUAGES)[number];

/** For each grammar of a language: the nodes that import something, and those that are not code. */
const QUERIES = {
  python: {
    python: `[(import_statement) (import_from_statement) (future_import_statement)] @import
      (comment) @quiet (expression_statement . (string) @quiet .)`,
  },
  java: { java: '(import_declaration) @import [(line_comment) (block_comment) (package_declaration)] @quiet' },
  typescript: {
    typescript: '(import_statement) @import (comment) @quiet',
    tsx: '(import_statement) @import (comment) @quiet',
  },
  csharp: { 'c-sharp': '(using_directive) @import (comment) @quiet' },
  go: { go: '(import_spec) @import [(comment) (package_clause)] @quiet' },
} as const satisfies Record<LanguageName, Partial<Record<Grammar, string>>>;

/**
 * Steps that a parser may take. The five largest files below 100 KiB of Python 3.11's library take 309 to 584. The
 * limit is not a time, because then a data set would depend on how busy the machine was.
 */
const MAX_STEPS = 10_000;

export interface FileSyntax {
  /** Number of import statements; in Go of imported packages. */
  readonly imports: number;
  /** Whether a line, counted from 0, is more than a comment or a docstring. */
  isCode(line: number): boolean;
}

export class LanguageSyntax {
  readonly #parsers: ReadonlyMap<string, { readonly parser: Parser; readonly query: Query }>;

  private constructor(parsers: ReadonlyMap<string, { readonly parser: Parser; readonly query: Query }>) {
    this.#parsers = parsers;
  }

  static async load(language: LanguageName): Promise<LanguageSyntax> {
    const parsers = new Map<string, { parser: Parser; query: Query }>();
    for (const [grammar, pattern] of Object.entries(QUERIES[language])) {
      const { language: grammarLanguage, parser } = await loadGrammar(grammar as Grammar);
      parsers.set(grammar, { parser, query: compileQuery(grammarLanguage, pattern) });
    }
    return new LanguageSyntax(parsers);
  }

  /** Whether a file is of this language, by the ending of its name. */
  covers(path: string): boolean {
    return this.#parsers.has(grammarOf(path) ?? '');
  }

  /**
   * The syntax of a file that is {@link covers covered}; undefined if it would take too long to parse.
   * @param name of the file, for messages
   * @throws ServingError sample_invalid if the parser breaks down, after which none of this process works.
   */
  of(name: string, path: string, text: string): FileSyntax | undefined {
    const { parser, query } = this.#parsers.get(grammarOf(path) ?? '')!;
    let steps = 0;
    try {
      const tree = parser.parse(text, null, { progressCallback: () => ++steps > MAX_STEPS });
      if (!tree) {
        parser.reset(); // otherwise the parser would go on with this text when it is given the next one
        return undefined;
      }
      try {
        return factsOf(query.captures(tree.rootNode), text.split('\n'));
      } finally {
        tree.delete();
      }
    } catch (cause) {
      const message = `${name} broke the parser (${reasonOf(cause)}): name its repository in --exclude, and use another --to`;
      throw new ServingError('sample_invalid', message, { cause });
    }
  }

  dispose(): void {
    for (const { parser, query } of this.#parsers.values()) {
      query.delete();
      parser.delete();
    }
  }
}

function factsOf(captures: ReturnType<Query['captures']>, lines: readonly string[]): FileSyntax {
  let imports = 0;
  const quiet = new Set<number>();
  for (const { name, node } of captures) {
    if (name === 'import') {
      imports++;
      continue;
    }
    const { startPosition: start, endPosition: end } = node;
    const first = lines[start.row] ?? '';
    const indent = first.length - first.trimStart().length;
    // A comment that follows code on its line leaves that line to the code.
    for (let row = start.column <= indent ? start.row : start.row + 1; row <= end.row; row++) quiet.add(row);
  }
  return { imports, isCode: (line) => !quiet.has(line) };
}
