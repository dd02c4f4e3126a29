/** Whether code is a whole statement, by its syntax tree. */
import { once } from '../../async/once.ts';
import { BoundedParser } from './bounded-parser.ts';
import { GRAMMARS, type Grammar, type Node } from './grammars.ts';

/**
 * What the lines of a text say about the statement that they begin with:
 *
 *   whole   it may be over, unless the next line continues it: an `else`, a deeper line
 *   over    no line can continue it
 */
export type StatementState = 'whole' | 'over';

/** Languages in which a line end ends a statement that has no block. */
const LINE_ENDS_STATEMENT: ReadonlySet<Grammar> = new Set(['python', 'go']);
/** Languages in which a block is closed by a bracket. */
const INDENTED_BLOCKS: ReadonlySet<Grammar> = new Set(['python']);
/** Nodes that are over with the bracket that closes their block; after others an `else` or a `catch` may come. */
const OVER_WITH_BLOCK = new RegExp(
  '^(?:export_statement|(?:generator_|local_)?function|method|constructor|(?:abstract_)?class|interface|enum|struct|' +
    'record|impl|trait|mod|namespace|(?:enhanced_)?for|while)',
);
/** Fields of nodes that hold their blocks. */
const BLOCK_FIELDS = ['body', 'consequence', 'definition'];

export class Statements {
  readonly #grammar: Grammar;
  readonly #parser: BoundedParser;

  constructor(grammar: Grammar, parser: BoundedParser) {
    this.#grammar = grammar;
    this.#parser = parser;
  }

  /** Loads a grammar. All callers share one parser per grammar, which lives as long as the process. */
  static load(grammar: Grammar): Promise<Statements> {
    return LOADS.get(grammar)!();
  }

  /**
   * Looks at the first statement of a text, after its comments. It takes up to 20 ms: see {@link BoundedParser}.
   * @param text whole lines; the first line that is not blank has no indentation.
   * @returns undefined where the statement is not whole, or its tree does not tell.
   */
  judge(text: string): StatementState | undefined {
    const tree = this.#parser.parse(text);
    if (!tree) return undefined;
    try {
      const outer = tree.rootNode.namedChildren.find((child) => child && !child.type.includes('comment'));
      const node = outer?.type === 'global_statement' ? outer.firstNamedChild : outer;
      // The root is an error where the parser has found no statement at all.
      if (!node || tree.rootNode.isError || node.isError || node.hasError) return undefined;
      return this.#isOver(node) ? 'over' : 'whole';
    } finally {
      tree.delete();
    }
  }

  #isOver(node: Node): boolean {
    if (node.text.endsWith(';')) return true;
    const hasBlock = BLOCK_FIELDS.some((field) => node.childForFieldName(field) !== null);
    if (LINE_ENDS_STATEMENT.has(this.#grammar) && !hasBlock) return true;
    if (INDENTED_BLOCKS.has(this.#grammar)) return false;
    return node.text.endsWith('}') && (this.#grammar === 'go' || OVER_WITH_BLOCK.test(node.type));
  }
}

const LOADS = new Map(
  GRAMMARS.map((grammar) => [grammar, once(async () => new Statements(grammar, await BoundedParser.load(grammar)))]),
);
