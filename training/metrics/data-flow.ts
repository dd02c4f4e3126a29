/**
 * Where the values of code come from, as edges from names to names: the data-flow part of CodeBLEU, with the rules that
 * Microsoft's CodeXGLUE has for each language, odd ones included. TypeScript has none there; JavaScript's rules are
 * applied to its trees, in which these nodes have the same names.
 *
 * It differs from the original in two ways. Where sources of several edges are united, the original orders them by
 * Python's hashes, which change from run to run; here they keep the order in which they first appear. And the original
 * cuts names out of lines by positions in bytes, which are wrong after a character beyond ASCII; here they are right.
 */
import type { Node } from '../../services/lib/rag/encode/grammars.ts';
import type { ScoredLanguage } from './keywords.ts';

/** One edge: what a token's value comes from. Names are `var_0`, `var_1` … by their first appearance. */
export type FlowEdge = readonly [name: string, kind: FlowKind, from: readonly string[]];
type FlowKind = 'comesFrom' | 'computedFrom';

interface Edge {
  readonly name: string;
  /** The number of the token, counted from 0. */
  readonly at: number;
  readonly kind: FlowKind;
  /** Names of the sources, and the numbers of their tokens; after a union their lengths may differ. */
  readonly fromNames: readonly string[];
  readonly from: readonly number[];
}

/** Where each name got its value: numbers of tokens. */
type State = ReadonlyMap<string, readonly number[]>;
type Flow = readonly [edges: readonly Edge[], state: State];

interface FlowRules {
  readonly definitions: ReadonlySet<string>;
  /** Name and value of a definition; the value may be absent. */
  readonly defined: (node: Node) => readonly [name: Node, value: Node | null];
  readonly assignments: ReadonlySet<string>;
  /** Sides of an assignment that belong together; undefined for a mere declaration, which has no flow. */
  readonly sides: (node: Node) => readonly (readonly [left: Node, right: Node])[] | undefined;
  /** Whether one edge has all sources of an assignment, or each source an edge of its own. */
  readonly joinsSources: boolean;
  readonly increments: ReadonlySet<string>;
  /** Children of an `if` that are branches beside the first; with `onwards` all children after such a one, too. */
  readonly branches: ReadonlySet<string>;
  readonly onwards: boolean;
  /** Whether the state before an `if` counts also where there is an `else`. */
  readonly keepsStateBefore: boolean;
  readonly loop: 'python' | { readonly repeatsAfter: string };
  /** Loops over a collection: type of node, and the fields of the variable and the collection. */
  readonly each?: readonly [type: string, variable: string, collection: string];
  /** Children that are visited before the others. */
  readonly first: string;
}

const STRINGS = new Set(['string_literal', 'string', 'character_literal']);
/** Deeper trees have no edges: the original exhausts Python's stack on them. */
const MAX_DEPTH = 900;

/** A tree that lacks a field, because of an error in the code, or that is too deep: the original gives it no edges. */
class NoFlow extends Error {}

function field(node: Node, name: string): Node {
  const found = node.childForFieldName(name);
  if (found === null) throw new NoFlow();
  return found;
}

const childrenOf = (node: Node) => node.children.filter((child) => child !== null);
const isToken = ({ type, childCount }: Node) => type !== 'comment' && (childCount === 0 || STRINGS.has(type));

/** Sides of an assignment in Python: part by part if both have as many parts, whole otherwise. */
function pythonSides(node: Node, right: Node): [Node, Node][] {
  const left = field(node, 'left');
  const parts = (side: Node) => childrenOf(side).filter(({ type }) => type !== ',');
  const [lefts, rights] = [parts(left), parts(right)];
  if (lefts.length !== rights.length || lefts.length === 0) return [[left, right]];
  return lefts.map((part, i) => [part, rights[i]!]);
}

const fields = (node: Node) => [[field(node, 'left'), field(node, 'right')]] as const;
const nameAndValue = (node: Node) => [field(node, 'name'), node.childForFieldName('value')] as const;

const JAVA: FlowRules = {
  definitions: new Set(['variable_declarator']),
  defined: nameAndValue,
  assignments: new Set(['assignment_expression']),
  sides: fields,
  joinsSources: false,
  increments: new Set(['update_expression']),
  branches: new Set(['if_statement', 'else']),
  onwards: true,
  keepsStateBefore: false,
  loop: { repeatsAfter: 'local_variable_declaration' },
  each: ['enhanced_for_statement', 'name', 'value'],
  first: '',
};

const JAVASCRIPT: FlowRules = {
  ...JAVA,
  assignments: new Set(['assignment_pattern', 'augmented_assignment_expression']),
  keepsStateBefore: true,
  loop: { repeatsAfter: 'variable_declaration' },
  each: undefined,
};

const RULES: Readonly<Record<ScoredLanguage, FlowRules>> = {
  python: {
    definitions: new Set(['default_parameter']),
    defined: nameAndValue,
    assignments: new Set(['assignment', 'augmented_assignment', 'for_in_clause']),
    sides(node) {
      if (node.type === 'for_in_clause') return [[field(node, 'left'), childrenOf(node).at(-1)!]];
      const right = node.childForFieldName('right');
      return right === null ? undefined : pythonSides(node, right);
    },
    joinsSources: true,
    increments: new Set(),
    branches: new Set(['elif_clause', 'else_clause']),
    onwards: false,
    keepsStateBefore: false,
    loop: 'python',
    first: 'for_in_clause',
  },
  java: JAVA,
  javascript: JAVASCRIPT,
  typescript: JAVASCRIPT,
  csharp: {
    ...JAVA,
    defined: (node) => {
      const [name, value, ...more] = childrenOf(node);
      if (name === undefined) throw new NoFlow();
      return [name, more.length === 0 ? (value ?? null) : null];
    },
    increments: new Set(['postfix_unary_expression']),
    each: ['for_each_statement', 'left', 'right'],
  },
};

/** The edges of a text, in the order of their tokens. */
export function dataFlow(language: ScoredLanguage, root: Node): FlowEdge[] {
  try {
    const tokens = new Tokens(root);
    const [edges] = new FlowReader(RULES[language], tokens).read(root, new Map());
    return named(united(connected(sorted(edges))));
  } catch (error) {
    if (error instanceof NoFlow) return [];
    throw error;
  }
}

/** The tokens of a tree: leaves and whole strings, numbered in the order of the text. */
class Tokens {
  readonly #numbers = new Map<string, number>();

  constructor(root: Node) {
    // Of tokens without text at one place, such as those that an error lacks, the last counts.
    for (const [number, node] of this.#leaves(root, 0).entries()) this.#numbers.set(Tokens.#key(node), number);
  }

  number(node: Node): number {
    return this.#numbers.get(Tokens.#key(node))!;
  }

  /** The tokens under a node that are variables, and not operators, keywords or brackets. */
  variables(node: Node): { readonly name: string; readonly at: number }[] {
    return this.#leaves(node, 0)
      .map((leaf) => ({ type: leaf.type, name: nameOf(leaf), at: this.number(leaf) }))
      .filter(({ type, name }) => type !== name);
  }

  static #key = ({ startIndex, endIndex }: Node) => `${startIndex}:${endIndex}`;

  #leaves(node: Node, depth: number): Node[] {
    if (depth > MAX_DEPTH) throw new NoFlow();
    return isToken(node) ? [node] : childrenOf(node).flatMap((child) => this.#leaves(child, depth + 1));
  }
}

const nameOf = (token: Node) => token.text.replaceAll('\n', '');

class FlowReader {
  readonly #rules: FlowRules;
  readonly #tokens: Tokens;
  #depth = 0;

  constructor(rules: FlowRules, tokens: Tokens) {
    this.#rules = rules;
    this.#tokens = tokens;
  }

  read(node: Node, state: State): Flow {
    if (++this.#depth > MAX_DEPTH) throw new NoFlow();
    const [edges, after] = this.#flow(node, state);
    this.#depth--;
    return [sorted(edges), after];
  }

  #flow(node: Node, state: State): Flow {
    const { definitions, assignments, increments, loop, each, first } = this.#rules;
    const { type } = node;
    if (isToken(node)) return this.#token(node, state);
    if (definitions.has(type)) return this.#definition(node, state);
    if (assignments.has(type)) {
      const sides = this.#rules.sides(node);
      return sides === undefined ? [[], state] : this.#assignment(sides, state);
    }
    if (increments.has(type)) return this.#pairs(node, node, 'computedFrom', state);
    if (type === 'if_statement' || this.#isElse(type)) return this.#branches(node, state);
    if (type === 'for_statement') return loop === 'python' ? this.#pythonLoop(node, state) : this.#loop(node, state);
    if (each !== undefined && type === each[0]) return this.#each(node, each, state);
    const children = childrenOf(node);
    if (type === 'while_statement') return merged(this.#all([...children, ...children], state));
    const [early, late] = [children.filter((child) => child.type === first), children.filter((c) => c.type !== first)];
    return this.#all([...early, ...late], state);
  }

  /** Languages of C's family treat a node of type `else` as an `if`. */
  #isElse(type: string): boolean {
    return type === 'else' && this.#rules.branches.has(type);
  }

  /** Nodes one after the other. */
  #all(nodes: readonly Node[], state: State): Flow {
    let now = state;
    const edges: Edge[] = [];
    for (const node of nodes) {
      const [more, after] = this.read(node, now);
      edges.push(...more);
      now = after;
    }
    return [edges, now];
  }

  #token(node: Node, state: State): Flow {
    const [name, at] = [nameOf(node), this.#tokens.number(node)];
    if (node.type === name) return [[], state];
    const from = state.get(name);
    if (from !== undefined) return [[{ name, at, kind: 'comesFrom', fromNames: [name], from }], state];
    const after = node.type === 'identifier' ? new Map(state).set(name, [at]) : state;
    return [[{ name, at, kind: 'comesFrom', fromNames: [], from: [] }], after];
  }

  #definition(node: Node, state: State): Flow {
    const [name, value] = this.#rules.defined(node);
    if (value !== null) {
      const [edges, now] = this.read(value, state);
      const [more, after] = this.#pairs(name, value, 'comesFrom', now);
      return [[...edges, ...more], after];
    }
    const names = this.#tokens.variables(name);
    const after = new Map(state);
    for (const { name, at } of names) after.set(name, [at]);
    return [names.map(({ name, at }) => ({ name, at, kind: 'comesFrom', fromNames: [], from: [] })), after];
  }

  /** An edge from every variable of one node to every variable of another; the former have new values. */
  #pairs(left: Node, right: Node, kind: FlowKind, state: State): Flow {
    const sources = this.#tokens.variables(right);
    const after = new Map(state);
    const edges: Edge[] = [];
    for (const { name, at } of this.#tokens.variables(left)) {
      edges.push(...sources.map((source) => ({ name, at, kind, fromNames: [source.name], from: [source.at] })));
      after.set(name, [at]);
    }
    return [edges, after];
  }

  #assignment(sides: readonly (readonly [Node, Node])[], state: State): Flow {
    const [edges, now] = this.#all(
      sides.map(([, right]) => right),
      state,
    );
    const [more, after] = this.#assigned(sides, now);
    return [[...edges, ...more], after];
  }

  #assigned(sides: readonly (readonly [Node, Node])[], state: State): Flow {
    let now = state;
    const edges: Edge[] = [];
    for (const [left, right] of sides) {
      if (this.#rules.joinsSources) {
        const sources = this.#tokens.variables(right);
        const [fromNames, from] = [sources.map(({ name }) => name), sources.map(({ at }) => at)];
        const after = new Map(now);
        for (const { name, at } of this.#tokens.variables(left)) {
          edges.push({ name, at, kind: 'computedFrom', fromNames, from });
          after.set(name, [at]);
        }
        now = after;
      } else {
        const [more, after] = this.#pairs(left, right, 'computedFrom', now);
        edges.push(...more);
        now = after;
      }
    }
    return [edges, now];
  }

  #branches(node: Node, state: State): Flow {
    const { branches, onwards, keepsStateBefore } = this.#rules;
    const edges: Edge[] = [];
    const others: State[] = [];
    let now = state;
    let branched = false;
    let hasElse = node.type.includes('else');
    for (const child of childrenOf(node)) {
      hasElse ||= child.type.includes('else');
      const isBranch = branches.has(child.type) || (onwards && branched);
      const [more, after] = this.read(child, isBranch ? state : now);
      edges.push(...more);
      if (isBranch) {
        branched = true;
        others.push(after);
      } else now = after;
    }
    others.push(now);
    if (!hasElse || keepsStateBefore) others.push(state);
    const after = new Map<string, readonly number[]>();
    for (const other of others)
      for (const [name, from] of other) after.set(name, [...(after.get(name) ?? []), ...from]);
    for (const [name, from] of after) after.set(name, ascending(from));
    return [edges, after];
  }

  #pythonLoop(node: Node, state: State): Flow {
    const last = childrenOf(node).at(-1)!;
    let now = state;
    const edges: Edge[] = [];
    for (let round = 0; round < 2; round++) {
      const [more, assigned] = this.#assignment(pythonSides(node, field(node, 'right')), now);
      const [body, after] = last.type === 'block' ? this.read(last, assigned) : [[], assigned];
      edges.push(...more, ...body);
      now = after;
    }
    return merged([edges, now]);
  }

  /** `for (declaration; condition; step) body`: all of it, then what follows the declaration once more. */
  #loop(node: Node, state: State): Flow {
    const { loop } = this.#rules;
    const children = childrenOf(node);
    const declaration = loop === 'python' ? -1 : children.findIndex(({ type }) => type === loop.repeatsAfter);
    return merged(this.#all([...children, ...(declaration < 0 ? [] : children.slice(declaration + 1))], state));
  }

  #each(node: Node, [, variable, collection]: NonNullable<FlowRules['each']>, state: State): Flow {
    const [name, value, body] = [field(node, variable), field(node, collection), field(node, 'body')];
    let now = state;
    const edges: Edge[] = [];
    for (let round = 0; round < 2; round++) {
      const [read, afterValue] = this.read(value, now);
      const [pairs, afterPairs] = this.#pairs(name, value, 'computedFrom', afterValue);
      const [inner, afterBody] = this.read(body, afterPairs);
      edges.push(...read, ...pairs, ...inner);
      now = afterBody;
    }
    return merged([edges, now]);
  }
}

const sorted = (edges: readonly Edge[]) => edges.toSorted((a, b) => a.at - b.at);
const distinct = <T>(values: readonly T[]) => [...new Set(values)];
const ascending = (values: readonly number[]) => distinct(values).sort((a, b) => a - b);

/** Unites the edges of a loop's rounds that have one name, position and kind. */
function merged([edges, state]: Flow): Flow {
  const byKey = new Map<string, Edge>();
  for (const edge of edges) {
    const key = JSON.stringify([edge.name, edge.at, edge.kind]);
    const before = byKey.get(key);
    byKey.set(key, before === undefined ? edge : unite(before, edge, ascending));
  }
  return [sorted([...byKey.values()]), state];
}

const unite = (a: Edge, b: Edge, order: (from: readonly number[]) => number[]): Edge => ({
  ...a,
  fromNames: distinct([...a.fromNames, ...b.fromNames]),
  from: order([...a.from, ...b.from]),
});

/** Leaves out edges of tokens that have no source and are no source. */
function connected(edges: readonly Edge[]): Edge[] {
  const used = new Set(edges.flatMap(({ at, from }) => (from.length > 0 ? [at, ...from] : [])));
  return edges.filter(({ at }) => used.has(at));
}

/** One edge for each token, of the kind that comes last. */
function united(edges: readonly Edge[]): Edge[] {
  const byToken = new Map<number, Edge>();
  for (const edge of edges) {
    const before = byToken.get(edge.at);
    byToken.set(edge.at, before === undefined ? edge : { ...unite(before, edge, distinct), kind: edge.kind });
  }
  return [...byToken.values()];
}

/** Names by their first appearance, the sources of an edge before its own name. */
function named(edges: readonly Edge[]): FlowEdge[] {
  const names = new Map<string, string>();
  const nameOf = (name: string) => {
    if (!names.has(name)) names.set(name, `var_${names.size}`);
    return names.get(name)!;
  };
  return edges.map(({ name, kind, fromNames }) => {
    const from = fromNames.map(nameOf);
    return [nameOf(name), kind, from] as const;
  });
}
