/**
 * Pruning by the types of tokens, as tree-sitter tells them: the idea of CodePromptZip (He et al., 2025) with a fixed
 * order of types instead of its trained model, which is not published. Names that are called or defined say most about
 * what other code may use, and punctuation says least.
 */
import { loadGrammar, type Node, type Parser } from '../../services/lib/rag/encode/grammars.ts';
import type { ScoredLanguage } from '../../training/metrics/keywords.ts';

/** Types of tokens, those first that are kept longest. */
const TYPES = ['signature', 'invocation', 'identifier', 'literal', 'keyword', 'symbol', 'comment'] as const;
type TokenType = (typeof TYPES)[number];

interface TypedToken {
  readonly text: string;
  readonly type: TokenType;
}

const GRAMMAR_OF = {
  python: 'python',
  java: 'java',
  javascript: 'javascript',
  typescript: 'typescript',
  csharp: 'c-sharp',
} as const;

/** Longest code that is parsed, in UTF-16 units; of a longer chunk the rest is left out. */
const MAX_CHARACTERS = 20_000;
/** Steps that a parser may take. */
const MAX_STEPS = 10_000;

const DEFINITION = /(definition|declaration|declarator|parameters?|signature)$/;
const CALL =
  /^(call|call_expression|invocation_expression|method_invocation|object_creation_expression|new_expression)$/;
const MEMBER = /^(attribute|member_expression|member_access_expression|field_access)$/;

export class TypedPruning {
  readonly #parser: Parser;

  private constructor(parser: Parser) {
    this.#parser = parser;
  }

  /** The caller must dispose of it. */
  static async load(language: ScoredLanguage): Promise<TypedPruning> {
    return new TypedPruning((await loadGrammar(GRAMMAR_OF[language])).parser);
  }

  /**
   * The tokens of a text that are worth most, in their order, joined by spaces.
   * @param length of a text in tokens of the language model
   * @param budget the most that the result may have
   */
  prune(code: string, length: (text: string) => number, budget: number): string {
    const tokens = this.#tokens(code.slice(0, MAX_CHARACTERS));
    const order = TYPES.flatMap((type) => tokens.flatMap((token, i) => (token.type === type ? [i] : [])));
    const kept = new Set<number>();
    const seen = new Set<string>();
    const text = () => tokens.flatMap((token, i) => (kept.has(i) ? [token.text] : [])).join(' ');
    for (const i of order) {
      if (seen.has(tokens[i]!.text)) continue; // a name says as much once
      kept.add(i);
      if (length(text()) <= budget) seen.add(tokens[i]!.text);
      else kept.delete(i); // a shorter one may still fit
    }
    return text();
  }

  dispose(): void {
    this.#parser.delete();
  }

  /** The leaves of the syntax tree; words of a text that takes too long to parse. */
  #tokens(code: string): TypedToken[] {
    let steps = 0;
    const tree = this.#parser.parse(code, null, { progressCallback: () => ++steps > MAX_STEPS });
    if (!tree) {
      this.#parser.reset(); // otherwise the parser would go on with this text when it is given the next one
      return code.split(/\s+/).flatMap((text) => (text === '' ? [] : [{ text, type: 'identifier' as const }]));
    }
    try {
      const tokens: TypedToken[] = [];
      const todo: Node[] = [tree.rootNode];
      for (let node = todo.pop(); node; node = todo.pop()) {
        const whole = node.childCount === 0 || /string|comment/.test(node.type);
        if (whole && node.text.trim() !== '') tokens.push({ text: node.text.trim(), type: typeOf(node) });
        if (!whole) for (const child of node.children.toReversed()) if (child) todo.push(child);
      }
      return tokens;
    } finally {
      tree.delete();
    }
  }
}

function typeOf(node: Node): TokenType {
  if (/comment/.test(node.type)) return 'comment';
  if (/string|integer|float|number|char|literal/.test(node.type)) return 'literal';
  if (!node.isNamed) return /\w/.test(node.text) ? 'keyword' : 'symbol';
  const { parent } = node;
  if (parent && CALL.test(parent.type)) return 'invocation';
  if (parent && MEMBER.test(parent.type) && parent.parent && CALL.test(parent.parent.type)) return 'invocation';
  return parent && DEFINITION.test(parent.type) ? 'signature' : 'identifier';
}
