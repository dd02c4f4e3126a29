/**
 * CodeBLEU (Ren et al., 2020): the mean of four parts, which are n-grams, n-grams with weighted keywords, matching
 * subtrees and matching data flow. A corpus sums what its pairs count and divides once; it is not a mean of scores.
 *
 * There are two variants, because the two programs that papers use differ, and a table must say which one it is.
 */
import type { Node } from '../../services/lib/rag/encode/grammars.ts';
import { type NgramCounts, ngramCounts, ngramScore, type Share, weightedNgramCounts } from './bleu.ts';
import { CodeTrees } from './code-trees.ts';
import { withoutPythonComments, withoutSlashComments } from './comments.ts';
import { dataFlow, type FlowEdge } from './data-flow.ts';
import { CODE_BLEU_KEYWORDS, PIP_PYTHON_KEYWORDS, type ScoredLanguage } from './keywords.ts';
import { strip, wordsOf } from './white-space.ts';

/**
 * `codexglue` is Microsoft's script: it removes comments as in Java whatever the language is, and gives no points where
 * no data flow matches. `pip` is the package `codebleu` 0.7.0: it removes comments as the language has them, knows
 * three more keywords of Python, and gives full points where no data flow matches, also where there is some.
 */
export const CODE_BLEU_VARIANTS = ['codexglue', 'pip'] as const;
export type CodeBleuVariant = (typeof CODE_BLEU_VARIANTS)[number];

/** What one pair counts. */
export interface CodeBleuCounts {
  readonly ngrams: NgramCounts;
  readonly weightedNgrams: NgramCounts;
  /** Subtrees of the target, and those of them that the prediction has. */
  readonly syntax: Share;
  /** Edges of the target's data flow, and those of them that the prediction has. */
  readonly dataFlow: Share;
}

/** All from 0 to 1. */
export interface CodeBleuScores {
  readonly codeBleu: number;
  readonly ngrams: number;
  readonly weightedNgrams: number;
  readonly syntax: number;
  /** Null where no target has any data flow. */
  readonly dataFlow: number | null;
}

export class CodeBleu {
  readonly variant: CodeBleuVariant;
  readonly #language: ScoredLanguage;
  readonly #trees: CodeTrees;

  private constructor(language: ScoredLanguage, variant: CodeBleuVariant, trees: CodeTrees) {
    this.variant = variant;
    this.#language = language;
    this.#trees = trees;
  }

  /** The caller must dispose of it. */
  static async load(language: ScoredLanguage, variant: CodeBleuVariant = 'codexglue'): Promise<CodeBleu> {
    return new CodeBleu(language, variant, await CodeTrees.load(language));
  }

  /** What a prediction counts against its target. A text that takes too long to parse is one subtree without flow. */
  count(prediction: string, target: string): CodeBleuCounts {
    const [ours, theirs] = [strip(prediction), strip(target)];
    const [ourWords, theirWords] = [wordsOf(ours), wordsOf(theirs)];
    const [ourStructure, theirStructure] = [this.#structure(ours), this.#structure(theirs)];
    return {
      ngrams: ngramCounts(ourWords, theirWords),
      weightedNgrams: weightedNgramCounts(ourWords, theirWords, this.#keywords),
      syntax: syntaxMatch(ourStructure.subtrees, theirStructure.subtrees),
      dataFlow: flowMatch(ourStructure.flow, theirStructure.flow),
    };
  }

  /** The data flow of a text, as edges between numbered names. */
  flowOf(text: string): readonly FlowEdge[] {
    return this.#structure(strip(text)).flow;
  }

  /** The scores of a corpus; at least one pair. */
  score(corpus: readonly CodeBleuCounts[]): CodeBleuScores {
    const ngrams = ngramScore(corpus.map((counts) => counts.ngrams));
    const weightedNgrams = ngramScore(corpus.map((counts) => counts.weightedNgrams));
    const syntax = ratio(total(corpus.map((counts) => counts.syntax)))!;
    const flow = ratio(total(corpus.map((counts) => counts.dataFlow)));
    const flowPoints = this.variant === 'pip' ? flow || 1 : (flow ?? 0);
    const codeBleu = (ngrams + weightedNgrams + syntax + flowPoints) / 4;
    return { codeBleu, ngrams, weightedNgrams, syntax, dataFlow: flow };
  }

  dispose(): void {
    this.#trees.dispose();
  }

  get #keywords(): ReadonlySet<string> {
    const python = this.variant === 'pip' && this.#language === 'python';
    return python ? PIP_PYTHON_KEYWORDS : CODE_BLEU_KEYWORDS[this.#language];
  }

  #structure(text: string): Structure {
    const python = this.variant === 'pip' && this.#language === 'python';
    const code = python ? withoutPythonComments(text) : withoutSlashComments(text);
    return (
      this.#trees.read(code, (root) => ({ subtrees: subtrees(root), flow: dataFlow(this.#language, root) })) ?? UNPARSED
    );
  }
}

interface Structure {
  /** S-expressions of the root and of all nodes that have children. */
  readonly subtrees: readonly string[];
  readonly flow: readonly FlowEdge[];
}

const UNPARSED: Structure = { subtrees: ['(ERROR)'], flow: [] };

function subtrees(root: Node): string[] {
  const found: string[] = [];
  const todo = [root];
  for (let node = todo.pop(); node; node = todo.pop()) {
    found.push(node.toString());
    for (const child of node.children) if (child && child.childCount > 0) todo.push(child);
  }
  return found;
}

/** A subtree of the prediction may match several of the target's. */
function syntaxMatch(prediction: readonly string[], target: readonly string[]): Share {
  const ours = new Set(prediction);
  return { matched: target.filter((subtree) => ours.has(subtree)).length, all: target.length };
}

/** An edge of the prediction matches one of the target's. */
function flowMatch(prediction: readonly FlowEdge[], target: readonly FlowEdge[]): Share {
  const left = new Map<string, number>();
  for (const edge of prediction) left.set(JSON.stringify(edge), (left.get(JSON.stringify(edge)) ?? 0) + 1);
  let matched = 0;
  for (const edge of target) {
    const key = JSON.stringify(edge);
    const count = left.get(key) ?? 0;
    if (count === 0) continue;
    matched++;
    left.set(key, count - 1);
  }
  return { matched, all: target.length };
}

const total = (shares: readonly Share[]): Share => ({
  matched: shares.reduce((sum, { matched }) => sum + matched, 0),
  all: shares.reduce((sum, { all }) => sum + all, 0),
});

const ratio = ({ matched, all }: Share) => (all === 0 ? null : matched / all);
