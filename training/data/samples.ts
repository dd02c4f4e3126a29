/** Rows of a data set as samples: the prompt as serving builds it, with one soft token for each of the best chunks. */

import { type BuiltPrompt, PromptBuilder, type PromptParts } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat, type PromptFormat } from '../../services/lib/text/prompt-format.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { Sample } from '../step/rows.ts';
import type { EmbeddedSample } from '../step/trainer.ts';
import type { Embeddings } from './embeddings.ts';
import type { DataRow } from './rows.ts';

interface SampleSettings {
  /** The most soft tokens of a prompt. */
  readonly chunks: number;
  /** The most tokens of a prompt, soft tokens included. */
  readonly promptTokens: number;
  /** The most tokens of a target. */
  readonly targetTokens: number;
  /** The most tokens of the chunks as text, for the teacher of KL. */
  readonly textTokens: number;
}

export class SampleMaker {
  readonly format: PromptFormat;
  readonly #tokenizer: Tokenizer;
  readonly #builder: PromptBuilder;
  readonly #settings: SampleSettings;

  /** @param eosIds ids that the model's configuration names as ends */
  constructor(tokenizer: Tokenizer, eosIds: readonly number[], settings: SampleSettings) {
    this.#tokenizer = tokenizer;
    this.format = choosePromptFormat(tokenizer, undefined, eosIds);
    this.#builder = new PromptBuilder(tokenizer, this.format);
    this.#settings = settings;
  }

  /** The chunks of a row that become soft tokens. */
  chunksOf(row: DataRow) {
    return row.chunks.slice(0, this.#settings.chunks);
  }

  /** @throws ServingError context_length_exceeded where the prompt has no room for its frame. */
  async embedded(row: DataRow, embeddings: Embeddings): Promise<EmbeddedSample> {
    const chunks = this.chunksOf(row);
    // The prompt needs the number of vectors alone.
    const prompt = this.#prompt(row, { kind: 'soft', vectors: chunks.map(() => new Float32Array(0)) }, 0);
    const softPositions = [...prompt.soft.positions];
    const kept = chunks.slice(0, softPositions.length);
    return { ...this.#sample(row, prompt), softPositions, embeddings: await embeddings.of(kept) };
  }

  /** The same prompt with its chunks as text, as the teacher of KL sees it. */
  withText(row: DataRow): Sample {
    const { textTokens: maxTokens } = this.#settings;
    const chunks = this.chunksOf(row);
    const prompt = this.#prompt(row, { kind: 'text', repo: '', path: '', chunks, maxTokens }, maxTokens);
    return this.#sample(row, prompt);
  }

  #prompt(row: DataRow, context: PromptParts['context'], further: number): BuiltPrompt {
    const { promptTokens } = this.#settings;
    const truncateTo = promptTokens + further;
    const parts = { prompt: row.left, suffix: row.right, context, capacity: truncateTo + 1, maxTokens: 1, truncateTo };
    const steps = this.#builder.build(parts);
    for (;;) {
      const { done, value } = steps.next();
      if (done) return value;
    }
  }

  /** A target that is not cut ends as an answer does. */
  #sample({ name, target }: DataRow, prompt: BuiltPrompt): Sample {
    const { targetTokens } = this.#settings;
    const { eosId } = this.#tokenizer;
    const ids = this.#tokenizer.encode(target);
    const targetIds = ids.length < targetTokens && eosId !== undefined ? [...ids, eosId] : ids.slice(0, targetTokens);
    return { name, promptIds: [...prompt.ids], softPositions: [], targetIds };
  }
}
