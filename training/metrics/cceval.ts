/**
 * How CrossCodeEval scores a completion: it is cut to one statement, comments are removed, and its names are compared
 * with the target's beside its text.
 */
import { CodeTrees } from './code-trees.ts';
import { CCEVAL_KEYWORDS, type ScoredLanguage } from './keywords.ts';
import { fuzzOf, similarity } from './lines.ts';
import { strip, stripRight } from './white-space.ts';

export interface CcevalScores {
  /** The completion cut to one statement, with comments. */
  readonly statement: string;
  /** The code before it takes too long to parse, so `statement` may be the completion uncut. */
  readonly isUnparsed: boolean;
  /** What was compared: statement and target without comments. */
  readonly prediction: string;
  readonly target: string;
  /** 0 or 1: equal lines without regard to blank ones and to white space at their ends. */
  readonly exactMatch: number;
  /** From 0 to 1. */
  readonly editSimilarity: number;
  /** The benchmark's own similarity: whole percents, a substitution costs 2 edits. */
  readonly fuzz: number;
  /** Names in the order of the text. */
  readonly predictionNames: readonly string[];
  readonly targetNames: readonly string[];
  /** 0 or 1: equal names in equal order. */
  readonly nameMatch: number;
  /** Of the sets of names, from 0 to 1; 0 where there is nothing to divide by. */
  readonly namePrecision: number;
  readonly nameRecall: number;
  readonly nameF1: number;
}

export class Cceval {
  readonly #language: ScoredLanguage;
  readonly #trees: CodeTrees;

  private constructor(language: ScoredLanguage, trees: CodeTrees) {
    this.#language = language;
    this.#trees = trees;
  }

  /** The caller must dispose of it. */
  static async load(language: ScoredLanguage): Promise<Cceval> {
    return new Cceval(language, await CodeTrees.load(language));
  }

  /** @param prompt the code before the completion; Python's statements are found with it. */
  score(prompt: string, completion: string, groundtruth: string): CcevalScores {
    const { statement, isUnparsed } =
      this.#language === 'python'
        ? this.#pythonStatement(prompt, completion)
        : { statement: bracketStatement(completion), isUnparsed: false };
    const [prediction, target] = [withoutComments(statement), withoutComments(groundtruth)];
    const [ours, theirs] = [strip(prediction), strip(target)];
    const [predictionNames, targetNames] = [this.#names(prediction), this.#names(target)];
    return {
      statement,
      isUnparsed,
      prediction,
      target,
      exactMatch: same(filledLines(prediction), filledLines(target)) ? 1 : 0,
      editSimilarity: similarity(ours, theirs, 0),
      fuzz: fuzzOf(ours, theirs),
      predictionNames,
      targetNames,
      nameMatch: same(predictionNames, targetNames) ? 1 : 0,
      ...overlap(new Set(predictionNames), new Set(targetNames)),
    };
  }

  dispose(): void {
    this.#trees.dispose();
  }

  /** Up to the first end of a line up to which prompt and completion parse; all of it if there is none. */
  #pythonStatement(prompt: string, completion: string): Pick<CcevalScores, 'statement' | 'isUnparsed'> {
    let isUnparsed = false;
    for (let end = completion.indexOf('\n', 1); end > 0; end = completion.indexOf('\n', end + 1)) {
      const text = completion.slice(0, end);
      const isWhole = this.#trees.read(prompt + text, (root) => root.descendantsOfType('ERROR').length === 0);
      if (isWhole) return { statement: stripRight(text), isUnparsed };
      isUnparsed ||= isWhole === undefined;
    }
    return { statement: completion, isUnparsed };
  }

  #names(code: string): string[] {
    const keywords = CCEVAL_KEYWORDS[this.#language];
    const words = code.replace(STRING, '').match(WORD) ?? [];
    return words.filter((word) => /^[_a-zA-Z]/.test(word) && !keywords.has(word));
  }
}

const STRING = /"([^"\\]*(\\.[^"\\]*)*)"|'([^'\\]*(\\.[^'\\]*)*)'/g;
const WORD = /[\p{L}\p{N}_]+/gu;

/** The benchmark removes both kinds of comments in all languages, within strings too. */
const withoutComments = (code: string) => code.replace(/#[^\n]*/g, '').replace(/\/\/[^\n]*/g, '');

/** Up to the first of `;`, `{` and `}`, as long as it is not the first character of all. */
function bracketStatement(completion: string): string {
  const end = completion.search(/[;{}]/);
  return end > 0 ? completion.slice(0, end + 1) : completion;
}

const filledLines = (text: string) =>
  text
    .split('\n')
    .map(strip)
    .filter((line) => line !== '');
const same = (a: readonly string[], b: readonly string[]) => a.length === b.length && a.every((x, i) => x === b[i]);

function overlap(ours: ReadonlySet<string>, theirs: ReadonlySet<string>) {
  const both = [...ours].filter((name) => theirs.has(name)).length;
  const share = (all: number, times = 1) => (all === 0 ? 0 : (times * both) / all);
  return {
    namePrecision: share(ours.size),
    nameRecall: share(theirs.size),
    nameF1: share(ours.size + theirs.size, 2),
  };
}
