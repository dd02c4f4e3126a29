/**
 * The compressors that the paper's Table 2 compares with soft tokens. Each rewrites a chunk without knowing the cursor,
 * as an indexer would, so what it makes of a chunk is made once and kept. All chunks of a prompt share its budget.
 */
import { z } from 'zod';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { contentKey, KeptLines } from '../../training/data/lines.ts';
import type { ScoredLanguage } from '../../training/metrics/keywords.ts';
import type { QualityClient } from './client.ts';
import type { EvaluateOptions, Rewriter } from './command.ts';
import type { GivenChunk, Sample } from './formats.ts';
import { isGiven } from './prompts.ts';
import { TypedPruning } from './typed-pruning.ts';

/** A model that follows instructions, and is asked for summaries. */
export interface Summarizer {
  readonly client: Pick<QualityClient, 'chat'>;
  /** '' for the system that is evaluated. */
  readonly url: string;
  /** Its name in requests; undefined where the server has but one. */
  readonly model: string | undefined;
}

interface Parts {
  readonly tokenizer: Tokenizer;
  /** Fingerprint of the bundle whose language model prunes. */
  readonly fingerprint: string;
  readonly client: QualityClient;
  readonly summarizer: Summarizer;
  readonly language: ScoredLanguage;
}

const keptSchema = z.object({ ids: z.array(z.number().int()) });

/** Tokens that a rewritten chunk has at least: in fewer nothing can be said, so fewer chunks are taken. */
const LEAST_TOKENS = 5;
/** The same of a summary, which is words and not a choice of tokens: a budget of ten is for the best chunk alone. */
const LEAST_SUMMARY_TOKENS = 10;
/** Tokens of a chunk that pruning and summaries read, as many as a text context may have of all chunks. */
const READ_TOKENS = 512;

/** What stands for chunks. */
export interface Rewritten {
  readonly ids: readonly number[];
  /** Whether a chunk's summary came back empty: it is not kept, and asked for again by the next run. */
  readonly lacksSummary: boolean;
}

export class Rewriters {
  readonly #parts: Parts;
  readonly #budget: number;
  readonly #kept: KeptLines<z.output<typeof keptSchema>>;
  readonly #typed: TypedPruning;

  private constructor(
    parts: Parts,
    { rewriteTokens }: Pick<EvaluateOptions, 'rewriteTokens'>,
    kept: KeptLines<z.output<typeof keptSchema>>,
    typed: TypedPruning,
  ) {
    this.#parts = parts;
    this.#budget = rewriteTokens;
    this.#kept = kept;
    this.#typed = typed;
  }

  /**
   * @param file of what has been rewritten; made where there is none. The caller must dispose of the result.
   * @throws ServingError path_unusable
   */
  static async open(file: string, parts: Parts, options: Pick<EvaluateOptions, 'rewriteTokens'>): Promise<Rewriters> {
    const kept = await KeptLines.open(file, keptSchema);
    return new Rewriters(parts, options, kept, await TypedPruning.load(parts.language));
  }

  /**
   * Rewritten context as tokens, at most as many as the budget has.
   * @param chunks best first
   * @throws ServingError of the model that rewrites.
   */
  async rewrite(rewriter: Rewriter, sample: Sample, chunks: readonly GivenChunk[]): Promise<Rewritten> {
    const { tokenizer } = this.#parts;
    if (isGiven(rewriter)) {
      return { ids: tokenizer.encodeHead(sample.rewritten[rewriter] ?? '', this.#budget), lacksSummary: false };
    }
    const least = rewriter === 'summary' ? LEAST_SUMMARY_TOKENS : LEAST_TOKENS;
    const best = chunks.slice(0, Math.max(1, Math.floor(this.#budget / least)));
    const ids: number[] = [];
    let lacksSummary = false;
    for (const [i, { text }] of best.entries()) {
      const between = ids.length === 0 ? [] : tokenizer.encode('\n');
      // What one chunk does not need is for those after it.
      const share = Math.floor((this.#budget - ids.length) / (best.length - i)) - between.length;
      const piece = share > 0 ? await this.#once(rewriter, text, share) : [];
      if (piece.length > 0) ids.push(...between, ...piece);
      else if (share > 0 && rewriter === 'summary') lacksSummary = true;
    }
    return { ids, lacksSummary };
  }

  /** What rewritten context depends on besides bundle, chunks and budget: a part of the key of an answer. */
  settingsOf(rewriter: Rewriter): object {
    const { language, summarizer } = this.#parts;
    if (rewriter === 'summary') return { summarizer: summarizer.url, model: summarizer.model ?? '' };
    return rewriter === 'typed' ? { language } : {};
  }

  dispose(): void {
    this.#typed.dispose();
  }

  async #once(rewriter: Rewriter, text: string, tokens: number): Promise<readonly number[]> {
    const key = contentKey('rewritten', rewriter, this.#parts.fingerprint, this.settingsOf(rewriter), tokens, text);
    const known = this.#kept.get(key);
    if (known && known.ids.length > 0) return known.ids;
    const ids = await this.#made(rewriter, text, tokens);
    // A model that thinks first may have used up its tokens: its empty answer must not stand for ever.
    if (ids.length > 0) await this.#kept.add(new Map([[key, { ids: [...ids] }]]));
    return ids;
  }

  async #made(rewriter: Rewriter, text: string, tokens: number): Promise<readonly number[]> {
    const { tokenizer, client, summarizer } = this.#parts;
    if (rewriter === 'pruned') return prune(tokenizer.encodeHead(text, READ_TOKENS), tokens, client);
    if (rewriter === 'summary') {
      return tokenizer.encodeHead(await summary(text, tokens, tokenizer, summarizer), tokens);
    }
    const length = (part: string) => tokenizer.encode(part).length;
    return tokenizer.encodeHead(this.#typed.prune(text, length, tokens), tokens);
  }
}

/**
 * The tokens of a chunk that the language model expected least, in their order: those that it expects tell it nothing
 * (Selective Context, Li et al., 2023). The first, which nothing predicts, counts as the least expected.
 */
export async function prune(ids: readonly number[], tokens: number, client: Pick<QualityClient, 'logprobs'>) {
  if (ids.length <= tokens) return ids;
  const { logprobs } = await client.logprobs({ prompt: ids });
  const surprisal = (i: number) => -(logprobs[i] ?? Number.NEGATIVE_INFINITY);
  const byValue = ids.map((_, i) => i).sort((a, b) => surprisal(b) - surprisal(a) || a - b);
  const kept = byValue.slice(0, tokens).sort((a, b) => a - b);
  return kept.map((i) => ids[i]!);
}

/** Words of English that a token stands for, at the most: models count words better than tokens. */
const WORDS_PER_TOKEN = 0.75;
/** Tokens of the summariser, whose tokenizer may need more of them than the one that counts the budget. */
const answerTokens = (tokens: number) => 2 * tokens + 16;

/** Asks a model that follows instructions for the gist of a chunk. */
async function summary(text: string, tokens: number, tokenizer: Tokenizer, { client, model }: Summarizer) {
  const code = tokenizer.decode(tokenizer.encodeHead(text, READ_TOKENS));
  const message =
    'Summarize the following code for a programmer who completes code in another file of the same repository. ' +
    'Name the functions, classes and values that matter. Answer with the summary alone, in at most ' +
    `${Math.max(4, Math.floor(WORDS_PER_TOKEN * tokens))} words.\n\nCode:\n${code}`;
  const answer = await client.chat(message, model, answerTokens(tokens));
  return answer.trim().split('\n\n')[0]!;
}
