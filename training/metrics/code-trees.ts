/** Syntax trees of code that is scored: completions, as odd as a model writes them, and files that end with one. */
import { type Grammar, loadGrammar, type Node, type Parser } from '../../services/lib/rag/encode/grammars.ts';
import type { ScoredLanguage } from './keywords.ts';

const GRAMMAR_OF: Readonly<Record<ScoredLanguage, Grammar>> = {
  python: 'python',
  java: 'java',
  javascript: 'javascript',
  typescript: 'typescript',
  csharp: 'c-sharp',
};

/**
 * Steps that a parser may take. Of 50 tokens that a model wrote none takes more than a hundred; a Python file of 117 KB
 * takes 555, so that files of 2 MB are parsed, in a second.
 */
const MAX_STEPS = 10_000;

export class CodeTrees {
  readonly #parser: Parser;

  private constructor(parser: Parser) {
    this.#parser = parser;
  }

  static async load(language: ScoredLanguage): Promise<CodeTrees> {
    return new CodeTrees((await loadGrammar(GRAMMAR_OF[language])).parser);
  }

  /** What `look` finds in the tree of a text; undefined if the text would take too long to parse. */
  read<T>(text: string, look: (root: Node) => T): T | undefined {
    let steps = 0;
    const tree = this.#parser.parse(text, null, { progressCallback: () => ++steps > MAX_STEPS });
    if (!tree) {
      this.#parser.reset(); // otherwise the parser would go on with this text when it is given the next one
      return undefined;
    }
    try {
      return look(tree.rootNode);
    } finally {
      tree.delete();
    }
  }

  dispose(): void {
    this.#parser.delete();
  }
}
