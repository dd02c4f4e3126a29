/**
 * What the language model makes of a prompt: the cross-entropy of the target, and its greedy completion with the scores
 * of lines. Training's validation and ablations judge by this alone.
 */
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { authorsScores, paperScores } from '../metrics/lines.ts';
import { type ModelPlace, TeacherPass } from '../step/pass.ts';
import { PROMPTS_PER_SLOT, Rollouts } from '../step/rollouts.ts';
import type { Sample } from '../step/rows.ts';

/** Sequences that decode together. */
const TOGETHER = 16;
/** Questions that are asked at once where there are many; their soft tokens are held at the same time. */
export const QUESTIONS = PROMPTS_PER_SLOT * TOGETHER;

/** A prompt with its soft tokens, and the text that should follow it. */
export interface Question {
  readonly sample: Sample;
  /** [soft, hidden]; empty where the prompt has none */
  readonly soft: Float32Array;
  readonly target: string;
  /** The same gap with the soft tokens of another sample's chunks. */
  readonly control?: Pick<Question, 'sample' | 'soft'>;
}

export interface Judgement {
  /** Mean over the target's tokens of -log p. */
  readonly ce: number;
  /** The same of the control, where the question has one: what soft tokens give that say nothing of this sample. */
  readonly controlCe?: number;
  /**
   * Mean cosine between two of its soft tokens, null where it has fewer; near 1 they say the same of every chunk.
   * Undefined without a projector, and in judgements of earlier versions.
   */
  readonly cosine?: number | null;
  /** The same between the embeddings of its chunks. */
  readonly cosineOfEmbeddings?: number | null;
  /** The completion, cut to as many filled lines as the target has. */
  readonly text: string;
  /** By the paper's definition, of that text: 0 or 1, and from 0 to 1. */
  readonly exactMatch: number;
  readonly editSimilarity: number;
  /** The same by the definition of the authors' code. */
  readonly authorsExactMatch: number;
  readonly authorsEditSimilarity: number;
}

interface Reading {
  readonly tokenizer: Tokenizer;
  /** Ids that end a completion. */
  readonly stopIds: ReadonlySet<number>;
}

export class Judge {
  readonly #model: TeacherPass;
  readonly #rollouts: Rollouts;
  readonly #reading: Reading;

  /** @param model, rollouts of the same language model; {@link dispose} disposes of both */
  constructor(model: TeacherPass, rollouts: Rollouts, reading: Reading) {
    this.#model = model;
    this.#rollouts = rollouts;
    this.#reading = reading;
  }

  /**
   * @param tokens the most tokens of a completion
   * @throws ServingError checkpoint_invalid, out_of_memory, runtime_failed; the signal's reason.
   */
  static async load(place: ModelPlace, tokens: number, reading: Reading, signal?: AbortSignal): Promise<Judge> {
    const model = await TeacherPass.load(place, signal);
    try {
      const { stopIds } = reading;
      return new Judge(model, await Rollouts.load(place, { slots: TOGETHER, tokens, stopIds }, signal), reading);
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  /** SHA-256 of the language model in its format, in hex. */
  get digest(): string {
    return this.#model.digest;
  }

  /** @throws ServingError sample_invalid, training_diverged, runtime_failed; the signal's reason. */
  async judge(questions: readonly Question[], signal?: AbortSignal): Promise<Judgement[]> {
    const { tokenizer, stopIds } = this.#reading;
    const samples = questions.map(({ sample }) => sample);
    const soft = questions.map(({ soft }) => soft);
    const written = await this.#rollouts.greedy(samples, soft, signal);
    const found: Judgement[] = [];
    for (const [i, { target, control }] of questions.entries()) {
      const ce = await this.#model.ce(samples[i]!, soft[i]!, signal);
      const controlCe = control && (await this.#model.ce(control.sample, control.soft, signal));
      const authors = authorsScores(tokenizer.decode(written[i]!.filter((id) => !stopIds.has(id))), target);
      const { exactMatch, editSimilarity } = paperScores(authors.text, target);
      found.push({
        ce,
        ...(controlCe !== undefined && { controlCe }),
        text: authors.text,
        exactMatch,
        editSimilarity,
        authorsExactMatch: authors.exactMatch,
        authorsEditSimilarity: authors.editSimilarity,
      });
    }
    return found;
  }

  async dispose(): Promise<void> {
    this.#model.dispose();
    await this.#rollouts.dispose();
  }
}
