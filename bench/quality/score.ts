/** Scores single completions, and what CodeBLEU counts of each. */
import { Cceval } from '../../training/metrics/cceval.ts';
import { CodeBleu, type CodeBleuCounts, type CodeBleuVariant } from '../../training/metrics/code-bleu.ts';
import type { ScoredLanguage } from '../../training/metrics/keywords.ts';
import { authorsScores, paperScores } from '../../training/metrics/lines.ts';
import type { Scores } from './result.ts';

export interface Scored {
  /** The part of the completion that is scored: as many filled lines as the target has. */
  readonly text: string;
  readonly scores: Scores;
  readonly counts: CodeBleuCounts;
  /** The code before the gap takes too long to parse, so the statement that is scored may be the completion uncut. */
  readonly isUnparsed: boolean;
}

export class Scorer {
  readonly codeBleu: CodeBleu;
  readonly #cceval: Cceval;

  private constructor(codeBleu: CodeBleu, cceval: Cceval) {
    this.codeBleu = codeBleu;
    this.#cceval = cceval;
  }

  /** The caller must dispose of it. */
  static async load(language: ScoredLanguage, variant: CodeBleuVariant): Promise<Scorer> {
    return new Scorer(await CodeBleu.load(language, variant), await Cceval.load(language));
  }

  /** @param left the code before the gap */
  score(left: string, completion: string, target: string): Scored {
    const authors = authorsScores(completion, target);
    const paper = paperScores(authors.text, target);
    const cceval = this.#cceval.score(left, completion, target);
    return {
      text: authors.text,
      scores: {
        exactMatch: paper.exactMatch,
        editSimilarity: paper.editSimilarity,
        authorsExactMatch: authors.exactMatch,
        authorsEditSimilarity: authors.editSimilarity,
        statementMatch: cceval.exactMatch,
        statementSimilarity: cceval.editSimilarity,
        nameMatch: cceval.nameMatch,
        nameF1: cceval.nameF1,
      },
      counts: this.codeBleu.count(authors.text, target),
      isUnparsed: cceval.isUnparsed,
    };
  }

  dispose(): void {
    this.codeBleu.dispose();
    this.#cceval.dispose();
  }
}
