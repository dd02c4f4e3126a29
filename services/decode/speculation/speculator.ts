/**
 * Speculation in the decode loop: proposes tokens for the one sequence that runs, and learns from what became of them.
 * Where several run, a step of all of them shares the reading of the weights already, and there is none.
 */
import type { Verifier } from '../../lib/engine/session.ts';
import { metrics } from '../../lib/process/metrics.ts';
import { type Draft, DraftIndex, type Drafts } from './draft-index.ts';
import { SpeculationPolicy } from './policy.ts';

/** What became of tokens that were proposed from a client's prediction. */
export interface Predicted {
  readonly accepted: number;
  readonly rejected: number;
}

export class Speculator {
  readonly verifier: Verifier;
  readonly #policy: SpeculationPolicy;
  readonly #vocab: number;
  /** Tokens of the longest draft that can be verified. */
  readonly #most: number;

  /** @param vocab ids of the model are below it. */
  constructor(verifier: Verifier, vocab: number) {
    this.verifier = verifier;
    this.#vocab = vocab;
    this.#policy = new SpeculationPolicy(verifier);
    this.#most = Math.max(...verifier.rows) - 1;
  }

  /** What a new sequence may repeat. @param output its tokens so far; earlier workers made all but the last. */
  begin(drafts: Drafts, output: { readonly prior: readonly number[]; readonly first: number }): DraftIndex {
    const index = new DraftIndex(drafts, this.#vocab, output.prior.length === 0);
    index.push(output.first);
    return index;
  }

  /** Tokens to verify now; undefined for a step without any. @param most that the sequence can take. */
  propose(index: DraftIndex, most: number): Draft | undefined {
    const draft = index.draft(Math.min(most, this.#most));
    const tokens = draft === undefined ? 0 : this.#policy.choose(draft);
    return tokens === 0 ? undefined : { ...draft!, ids: draft!.ids.slice(0, tokens) };
  }

  /** A step of the sequence alone was made without a draft. */
  stepped(): void {
    this.#policy.stepped();
  }

  /**
   * A draft was verified.
   * @param accepted tokens of it, from its beginning, that the sequence has taken.
   * @param tokens that the run has given.
   */
  verified(draft: Draft, accepted: number, tokens: number): Predicted | undefined {
    const { source, ids } = draft;
    this.#policy.verified(draft, ids.length, accepted, tokens);
    metrics.drafts.inc({ source });
    metrics.draftTokens.inc({ source }, ids.length);
    metrics.acceptedTokens.inc({ source }, accepted);
    for (let position = 0; position < accepted; position++) metrics.acceptedPerPosition.inc({ position });
    return source === 'prediction' ? { accepted, rejected: ids.length - accepted } : undefined;
  }
}
