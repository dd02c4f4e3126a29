/**
 * Completes every sample in every arm, and keeps each answer as soon as it is there: an evaluation that is killed goes
 * on after its last answer, and ends with the same figures.
 */
import { z } from 'zod';
import { type StreamedCompletion, tpotMs, ttftMs } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { contentKey, type KeptLines } from '../../training/data/lines.ts';
import type { CodeBleuCounts } from '../../training/metrics/code-bleu.ts';
import type { QualityClient } from './client.ts';
import { type EvaluateOptions, type Rewriter, WITH_FILES } from './command.ts';
import { type Contexts, NO_CONTEXT, type SampleContext } from './contexts.ts';
import type { GivenChunk, Sample } from './formats.ts';
import { type ArmSpec, type CutCode, type EvaluationPrompts, isGiven, isRewriter } from './prompts.ts';
import { chunkKey, type PromptChunk, type SampleResult } from './result.ts';
import type { Rewriters } from './rewriters.ts';
import type { Scored, Scorer } from './score.ts';

const count = z.number().int().nonnegative();

/** An answer as it is kept: without its scores, which follow from it. */
export const answerSchema = z.object({
  completion: z.string(),
  ce: z.number(),
  targetTokens: count,
  promptTokens: count,
  softTokens: count,
  outputTokens: count,
  ttftMs: z.number(),
  tpotMs: z.number().nullable(),
  chunks: z.array(
    z.object({
      path: z.string(),
      startLine: count,
      endLine: count,
      score: z.number(),
      form: z.enum(['soft', 'text']).optional(),
      text: z.string(),
    }),
  ),
  rewritten: z.string().nullable(),
  degraded: z.string().nullable(),
  given: count,
  indexed: count,
});
type KeptAnswer = z.output<typeof answerSchema>;

type WholeSample = Sample & { readonly right: string };

export interface EvaluationParts {
  readonly client: QualityClient;
  readonly contexts: Contexts;
  readonly prompts: EvaluationPrompts;
  readonly rewriters: Rewriters;
  readonly scorer: Scorer;
  readonly tokenizer: Tokenizer;
  /** Of the bundle that must be served. */
  readonly fingerprint: string;
  readonly answers: KeptLines<KeptAnswer>;
}

export type EvaluationSettings = Pick<
  EvaluateOptions,
  | 'context'
  | 'url'
  | 'promptTokens'
  | 'textTokens'
  | 'textChunks'
  | 'rewriteTokens'
  | 'topK'
  | 'fileTokens'
  | 'maxTokens'
  | 'promptOrder'
>;

/** Lines around the gap that a reader is shown. */
const [SHOWN_BEFORE, SHOWN_AFTER] = [8, 4];
/** Why a prompt lacks context where the model that summarises answered nothing. */
const EMPTY_SUMMARY = 'empty_summary';
/** Tokens of text that chunks may take where only their names are wanted. */
const NAMING_TOKENS = 8_192;

/** An arm, and the key of its answer to one sample. */
interface KeyedArm {
  readonly spec: ArmSpec;
  readonly key: string;
}

/** Whether an arm is given chunks that a search finds. */
const needsIndex = (arm: ArmSpec['arm']) => arm !== 'off' && !isGiven(arm);

type SearchedIndex = Parameters<EvaluationPrompts['retrieving']>[2];

interface Found {
  readonly chunks: readonly GivenChunk[];
  /** Why chunks are missing; null where none are. */
  readonly degraded: string | null;
}
const NOTHING_FOUND: Found = { chunks: [], degraded: null };

export class Evaluation {
  readonly #parts: EvaluationParts;
  readonly #settings: EvaluationSettings;
  readonly #specs: readonly ArmSpec[];

  constructor(parts: EvaluationParts, settings: EvaluationSettings, specs: readonly ArmSpec[]) {
    this.#parts = parts;
    this.#settings = settings;
    this.#specs = specs;
  }

  /**
   * @param index decides which arm comes first, so that no arm is always the one after an upload
   * @returns the sample with its answers; what CodeBLEU counts of them, in the order of the arms; how many were asked
   *   for now, rather than kept from before; how many were scored though the code before them could not be parsed
   * @throws ServingError of the system, with the sample's name; the signal's reason.
   */
  async complete(sample: WholeSample, index: number) {
    const arms = await this.#keyed(sample);
    const missing = arms.filter(({ key }) => this.#parts.answers.get(key) === undefined);
    const asked = missing.length > 0 ? await this.#ask(sample, rotated(missing, index)) : undefined;
    const kept = arms.map(({ spec, key }) => [spec, asked?.get(key) ?? this.#parts.answers.get(key)!] as const);
    const scored = kept.map(([, { completion }]) => this.#parts.scorer.score(sample.left, completion, sample.target));
    return {
      result: resultOf(sample, kept, scored),
      counts: scored.map(({ counts }): CodeBleuCounts => counts),
      asked: missing.length,
      unparsed: scored.filter(({ isUnparsed }) => isUnparsed).length,
    };
  }

  /** The arms of a sample, each with the key of its answer: a digest of all that the answer depends on. */
  async #keyed(sample: WholeSample): Promise<KeyedArm[]> {
    const searches = this.#specs.some(({ arm }) => needsIndex(arm));
    const indexed = searches ? await this.#parts.contexts.contentOf(sample) : '';
    return this.#specs.map((spec) => ({ spec, key: this.#key(spec, sample, indexed) }));
  }

  /** @param indexed digest of the repository that is searched; '' where the sample has all chunks itself. */
  #key(spec: ArmSpec, sample: WholeSample, indexed: string): string {
    const { left, right, target, path, repository, chunks, rewritten } = sample;
    const { url = '', context, promptTokens, textTokens, topK, maxTokens, promptOrder } = this.#settings;
    const settings = { url, context, promptTokens, textTokens, topK, maxTokens, promptOrder };
    const question = { left, right, target, path, repository, chunks, rewritten };
    const searched = indexed === '' || !needsIndex(spec.arm) ? [] : [indexed];
    const own = this.#ownSettings(spec.arm);
    return contentKey(1, this.#parts.fingerprint, settings, own, spec.arm, spec.retriever ?? '', question, ...searched);
  }

  /** Settings that the answers of one arm alone depend on. */
  #ownSettings(arm: ArmSpec['arm']): object {
    const { rewriteTokens, textChunks, fileTokens } = this.#settings;
    if (arm === 'mixed') return { textChunks };
    if (arm === WITH_FILES) return { fileTokens };
    return isRewriter(arm) ? { rewriteTokens, ...this.#parts.rewriters.settingsOf(arm) } : {};
  }

  /** The answers by their keys. Each is kept at once, but for those whose summaries the next run must ask for again. */
  async #ask(sample: WholeSample, arms: readonly KeyedArm[]): Promise<ReadonlyMap<string, KeptAnswer>> {
    const { answers, contexts, prompts } = this.#parts;
    const asked = new Map<string, KeptAnswer>();
    const code = prompts.cut(sample.left, sample.right);
    const askAll = async (context: SampleContext) => {
      for (const { spec, key } of arms) {
        const answer = await named(sample, spec, () => this.#answer(spec, sample, code, context));
        asked.set(key, answer);
        if (answer.degraded !== EMPTY_SUMMARY) await answers.add(new Map([[key, answer]]));
      }
    };
    if (arms.some(({ spec }) => needsIndex(spec.arm))) await contexts.with(sample, askAll);
    else await askAll(NO_CONTEXT);
    return asked;
  }

  async #answer(
    { arm, retriever }: ArmSpec,
    sample: WholeSample,
    code: CutCode,
    context: SampleContext,
  ): Promise<KeptAnswer> {
    const { prompts, rewriters, tokenizer } = this.#parts;
    const at = { repo: context.repo, path: sample.path, retriever };
    if (isRewriter(arm)) {
      const found = isGiven(arm) ? NOTHING_FOUND : await this.#find(code, at, context);
      const { ids, lacksSummary } = await rewriters.rewrite(arm satisfies Rewriter, sample, found.chunks);
      const answer = await this.#complete(prompts.withContext(code, ids), sample, NO_CONTEXT);
      return { ...answer, rewritten: tokenizer.decode(ids), degraded: lacksSummary ? EMPTY_SUMMARY : found.degraded };
    }
    if (arm === 'off' || at.repo === '') return this.#complete(prompts.plain(code), sample, NO_CONTEXT);
    return this.#complete(prompts.retrieving(code, arm, at), sample, context);
  }

  /** The chunks that the system finds for a gap, best first: a rewriter is given those that other arms have. */
  async #find(code: CutCode, at: SearchedIndex, context: SampleContext): Promise<Found> {
    if (at.repo === '') return NOTHING_FOUND;
    const { client, prompts } = this.#parts;
    const prompt = prompts.retrieving(code, 'text', at);
    const rag = { ...prompt.rag!, max_text_tokens: NAMING_TOKENS };
    const named = await client.complete({ ...prompt, rag, max_tokens: 1, temperature: 0 });
    assertFound(named, context);
    const texts = placesOf(named).map(async (place) => ({ path: place.path, text: await context.textOf(place) }));
    return { chunks: await Promise.all(texts), degraded: named.rag?.degraded ?? null };
  }

  async #complete(
    prompt: ReturnType<EvaluationPrompts['plain']>,
    sample: WholeSample,
    context: SampleContext,
  ): Promise<KeptAnswer> {
    const { client, fingerprint } = this.#parts;
    const done = await client.complete({ ...prompt, max_tokens: this.#settings.maxTokens, temperature: 0 });
    assertFound(done, context);
    // It has the same salt: TTFT has been measured, and the KV that was computed for it serves here.
    const forced = await client.logprobs({ ...prompt, completion_prefix: sample.target });
    assertServes(forced.fingerprint, fingerprint);
    const logprobs = forced.logprobs.filter((logprob) => logprob !== null);
    const ce = -logprobs.reduce((sum, logprob) => sum + logprob, 0) / logprobs.length;
    if (!Number.isFinite(ce)) {
      const message = `the system gave ${logprobs.length} log-probabilities of the target, and not all are finite`;
      throw new ServingError('runtime_failed', message);
    }
    const places = placesOf(done);
    return {
      completion: done.text,
      ce,
      targetTokens: logprobs.length,
      promptTokens: done.usage.prompt_tokens,
      softTokens: done.usage.prompt_tokens_details?.soft_tokens ?? 0,
      outputTokens: done.usage.completion_tokens,
      ttftMs: ttftMs(done),
      tpotMs: tpotMs(done) ?? null,
      chunks: await Promise.all(places.map(async (place) => ({ ...place, text: await context.textOf(place) }))),
      rewritten: null,
      degraded: done.rag?.degraded ?? null,
      given: context.given,
      indexed: context.indexed,
    };
  }
}

const rotated = <T>(items: readonly T[], by: number): T[] => {
  const start = by % items.length;
  return [...items.slice(start), ...items.slice(0, start)];
};

const placesOf = ({ rag }: StreamedCompletion): PromptChunk[] =>
  (rag?.chunks ?? []).map(({ path, start_line: startLine, end_line: endLine, score, form }) => ({
    path,
    startLine,
    endLine,
    score,
    ...(form && { form }),
  }));

/** @throws ServingError config_invalid if the system serves another bundle than the one that counts tokens here. */
function assertServes(served: string | undefined, fingerprint: string): void {
  const expected = `fp_${fingerprint.slice(0, 12)}`;
  if (served === undefined || served === expected) return;
  throw new ServingError(
    'config_invalid',
    `--url serves the bundle ${served}, and --models names ${expected}: name the bundle that is served`,
  );
}

/** @throws ServingError index_moved if the system searched another version than the one that was uploaded. */
function assertFound({ rag }: StreamedCompletion, { repo, version }: SampleContext): void {
  if (rag === undefined || rag.index_version === null || rag.index_version === version) return;
  throw new ServingError(
    'index_moved',
    `the system searched version ${rag.index_version} of ${repo}, and ${version} was uploaded: run the command again`,
  );
}

/** Failures say which sample and arm they belong to. */
async function named<T>({ name, id }: Sample, spec: ArmSpec, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (!(error instanceof ServingError)) throw error;
    const { code, message, param } = error;
    throw new ServingError(code, `${name} (${id}), arm ${spec.name}: ${message}`, {
      cause: error,
      ...(param !== undefined && { param }),
    });
  }
}

function resultOf(
  sample: WholeSample,
  kept: readonly (readonly [ArmSpec, KeptAnswer])[],
  scored: readonly Scored[],
): SampleResult {
  const texts: Record<string, string> = {};
  const answers = kept.map(([spec, { chunks, given: _, indexed: __, ...answer }], i) => {
    for (const { text, ...place } of chunks) texts[chunkKey(place)] = text;
    const { text, scores } = scored[i]!;
    const places = chunks.map(({ text: _, ...place }) => place);
    return [spec.name, { ...answer, text, scores, chunks: places }] as const;
  });
  const { id, name, path, left, right, target } = sample;
  return {
    id,
    name,
    path,
    before: left.split('\n').slice(-SHOWN_BEFORE).join('\n'),
    after: right.split('\n').slice(0, SHOWN_AFTER).join('\n'),
    target,
    given: Math.max(...kept.map(([, answer]) => answer.given)),
    indexed: Math.max(...kept.map(([, answer]) => answer.indexed)),
    chunks: texts,
    answers: Object.fromEntries(answers),
  };
}
