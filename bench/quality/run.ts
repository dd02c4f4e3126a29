/** Runs `llavacode evaluate`: reads a benchmark, completes it in every arm, and writes artifact, charts and page. */
import { access, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { softPerChunkOf } from '../../services/lib/model/bundle/bundle.ts';
import { flagName } from '../../services/lib/process/config.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { needsEmbeddings } from '../../services/lib/rag/retriever-name.ts';
import type { Flags } from '../../services/supervisor.ts';
import { KeptLines } from '../../training/data/lines.ts';
import type { CodeBleuCounts } from '../../training/metrics/code-bleu.ts';
import { type OnProgress, run } from '../harness/run.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { COLOCATED } from '../system/deployment.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import { startDeployment } from '../system/system.ts';
import { QualityClient } from './client.ts';
import { type EvaluateOptions, WITH_FILES } from './command.ts';
import { Contexts } from './contexts.ts';
import { answerSchema, Evaluation } from './evaluation.ts';
import { rungsBeside } from './ladder.ts';
import { comparisonsOf, figuresOf, gateOf, verdictOf } from './measure.ts';
import { Pace } from './pace.ts';
import { samplesPage } from './page.ts';
import { type ArmSpec, armSpecs, EvaluationPrompts, isRewriter, tokensOf } from './prompts.ts';
import { gateText, QUALITY } from './report.ts';
import type { QualityResult, Rung, SampleResult } from './result.ts';
import { Rewriters, type Summarizer } from './rewriters.ts';
import { Benchmark } from './samples.ts';
import { Scorer } from './score.ts';

/** Lines of a chunk of a system that indexes the benchmark's own chunks: it is not to cut them again. */
const WHOLE_CHUNK_LINES = 1_000;
/** Time that a retrieval may take here, in ms: an answer that lacks context for want of time would say nothing. */
const RETRIEVAL_MS = 60_000;

/**
 * Evaluates, or goes on with an evaluation of the same name that was stopped. Sets the exit code to 1 where the arm of
 * the gate is not shown to be better.
 * @returns the artifact
 * @throws ServingError config_invalid, sample_invalid, path_unusable, and those of the system; Interrupted.
 */
export async function runEvaluate(options: EvaluateOptions): Promise<Artifact<QualityResult>> {
  const signal = interruption();
  // Before a bundle is made, which takes minutes.
  assertSummarizer(options);
  await atPath(`--benchmark ${options.benchmark}`, () => access(options.benchmark));
  const model = await openModel(onlyModel(options), options, signal);
  const specs = armSpecs(options);
  assertArms(options, specs, model);
  const benchmark = await Benchmark.open(options, (text) => model.tokenizer.encode(text).length, signal);
  const beside = await rungsBeside(options.beside, benchmark.survey, options);
  const plan = { models: [model], settings: settingsOf(options, model) };
  const artifact = await run(QUALITY, options, plan, (onProgress) =>
    withSystem(options, model, signal, (url) =>
      evaluate({ options, model, specs, benchmark, beside, url, signal, onProgress }),
    ),
  );
  const page = join(options.out, `${options.name ?? QUALITY.name}.html`);
  await atPath(page, () => writeFile(page, samplesPage(artifact.result)));
  process.stdout.write(`Samples side by side: ${page}\n`);
  const { gate } = artifact.result;
  if (gate !== null && verdictOf(gate) !== 'better') {
    process.stderr.write(`llavacode: --require-better-than ${gate.against}: ${gateText(gate)}\n`);
    process.exitCode = 1;
  }
  return artifact;
}

/**
 * The options that a run depends on, for its artifact: a ready bundle has a precision of its own, and a running system
 * its own cores and room.
 */
function settingsOf(options: EvaluateOptions, { bundle }: Pick<BenchModel, 'bundle'>): object {
  const { apiKeyFile: _, summarizerKeyFile: __, beside: ___, ...all } = options;
  const { precision, prefillPrecision, cores, slots, capacity, ...always } = all;
  const isMade = resolve(onlyModel(options)) !== bundle;
  return {
    ...always,
    ...(isMade && { precision, prefillPrecision }),
    ...(options.url === undefined && { cores, slots, capacity }),
  };
}

/** @throws ServingError config_invalid for options of a summariser that nobody would ask. */
function assertSummarizer(options: EvaluateOptions): void {
  const { arms, summarizer, summarizerModel, summarizerKeyFile } = options;
  const given = Object.entries({ summarizer, summarizerModel, summarizerKeyFile }).filter(([, value]) => value);
  if (given.length === 0) return;
  const flags = given.map(([name, value]) => `${flagName(name)} ${value}`).join(', ');
  const lacking = arms.includes('summary') ? summarizer === undefined && '--summarizer' : 'summary in --arms';
  if (!lacking) return;
  throw new ServingError('config_invalid', `${flags} changes nothing without ${lacking}: add it, or leave this out`);
}

/** @throws ServingError config_invalid for arms that the bundle or the options do not allow. */
function assertArms(options: EvaluateOptions, specs: readonly ArmSpec[], { manifest, tokenizer }: BenchModel): void {
  const { context, name } = manifest;
  const { requireBetterThan, gateArm, retrievers } = options;
  const names = specs.map((spec) => spec.name);
  const needing = specs.find(({ arm, retriever }) =>
    !['off', 'text'].includes(arm) && !isRewriter(arm) ? true : retriever !== undefined && needsEmbeddings(retriever),
  );
  if (context === undefined && needing !== undefined) {
    throw new ServingError(
      'config_invalid',
      `--arms ${needing.name}: the bundle ${name} has no encoder and projector; export it with --projector, ` +
        'or leave the arm out',
    );
  }
  if (options.context !== 'index' && specs.some(({ arm }) => arm === WITH_FILES)) {
    throw new ServingError(
      'config_invalid',
      `--arms ${WITH_FILES}: the chunks of a benchmark are indexed as files of their own, so files have nothing to ` +
        'add; use --context index with --repositories, or leave the arm out',
    );
  }
  if (options.arms.includes('summary') && options.summarizer === undefined && tokenizer.chat.template === undefined) {
    throw new ServingError(
      'config_invalid',
      `--arms summary: the bundle ${name} has no chat_template, so its model follows no instructions; name a server ` +
        'whose model does with --summarizer, or leave the arm out',
    );
  }
  if (requireBetterThan === undefined) return;
  for (const [flag, arm] of [
    ['--require-better-than', requireBetterThan],
    ['--gate-arm', gateArm],
  ]) {
    if (names.includes(arm!)) continue;
    throw new ServingError(
      'config_invalid',
      `${flag} ${arm} is not among the arms that are evaluated (${names.join(', ')}): add it to --arms` +
        (retrievers.length > 1 ? ', and compare one retriever at a time' : ''),
    );
  }
}

/** Runs `use` on the system at --url, or on one that is started for it. */
async function withSystem<T>(
  options: EvaluateOptions,
  { bundle, manifest }: BenchModel,
  signal: AbortSignal,
  use: (url: string) => Promise<T>,
): Promise<T> {
  if (options.url !== undefined) return use(options.url);
  const { cores, slots, capacity, timeoutMs, promptOrder, context, retrievers } = options;
  const data = resolve(options.data, 'evaluate');
  const store = join(data, `store-${options.name ?? QUALITY.name}`);
  await rm(store, { recursive: true, force: true }); // of a run that was killed
  await mkdir(data, { recursive: true });
  const whole: Flags = { chunkLines: WHOLE_CHUNK_LINES, chunkStride: WHOLE_CHUNK_LINES, defaultExcludes: false };
  const system = await startDeployment(COLOCATED, {
    bundle,
    store: `lmdb:${store}`,
    cores,
    pinning: 'shared',
    slots,
    capacity: Math.min(capacity, manifest.llm.maxPositions),
    data,
    requestTimeoutMs: timeoutMs,
    targetTtftMs: timeoutMs,
    promptOrder,
    gateway: { retrievalBudgetMs: RETRIEVAL_MS, denseBudgetMs: RETRIEVAL_MS },
    // An index holds embeddings only if its own retriever compares them.
    indexer: {
      ...(context === 'file' && whole),
      ...(retrievers.some(needsEmbeddings) && { retriever: 'dense' }),
      ...(options.arms.includes(WITH_FILES) && { fileVectors: true }),
    },
  });
  try {
    signal.throwIfAborted();
    return await use(system.url);
  } finally {
    await system.close();
    await rm(store, { recursive: true, force: true });
  }
}

interface Task {
  readonly options: EvaluateOptions;
  readonly model: BenchModel;
  readonly specs: readonly ArmSpec[];
  readonly benchmark: Benchmark;
  /** Rungs of earlier runs. */
  readonly beside: readonly Rung[];
  readonly url: string;
  readonly signal: AbortSignal;
  readonly onProgress: OnProgress;
}

async function evaluate(task: Task): Promise<QualityResult> {
  const { options, model, specs, benchmark, beside, url, signal, onProgress } = task;
  const { survey } = benchmark;
  const apiKey = await apiKeyOf('--api-key-file', options.apiKeyFile);
  const client = new QualityClient({ url, apiKey, timeoutMs: options.timeoutMs, signal });
  const softPerChunk = softPerChunkOf(model.manifest);
  await assertRoom(client, options, softPerChunk, survey.longestTarget);
  const kept = resolve(options.data, 'evaluate', options.name ?? QUALITY.name);
  await mkdir(resolve(options.data, 'evaluate'), { recursive: true });
  const summarizer = await summarizerOf(options, client, signal);
  const { fingerprint } = model.manifest;
  const parts = { tokenizer: model.tokenizer, fingerprint, client, summarizer, language: survey.language };
  const rewriters = await Rewriters.open(`${kept}.rewritten.jsonl`, parts, options);
  const scorer = await Scorer.load(survey.language, options.codeBleu);
  const repositories = options.context === 'index' ? options.repositories : undefined;
  const contexts = new Contexts({ url, apiKey, signal, onProgress }, repositories);
  try {
    const answers = await KeptLines.open(`${kept}.answers.jsonl`, answerSchema);
    const prompts = new EvaluationPrompts(model.tokenizer, options);
    const all = { client, contexts, prompts, rewriters, scorer, tokenizer: model.tokenizer, fingerprint, answers };
    const evaluation = new Evaluation(all, options, specs);
    const samples: SampleResult[] = [];
    const counts: CodeBleuCounts[][] = specs.map(() => []);
    let unparsed = 0;
    const pace = new Pace(survey.taken, onProgress);
    for await (const read of benchmark.read()) {
      signal.throwIfAborted();
      const sample = { ...read, ...prompts.gap(read) };
      const done = await evaluation.complete(sample, samples.length);
      samples.push(done.result);
      for (const [i, one] of done.counts.entries()) counts[i]!.push(one);
      unparsed += done.unparsed;
      pace.done(done.asked > 0);
    }
    onProgress('computing figures', true);
    const figures = specs.map(({ name }, i) => figuresOf(name, samples, counts[i]!, scorer.codeBleu));
    const { requireBetterThan, gateArm, gateBy } = options;
    return {
      model: model.name,
      encoder: model.manifest.context?.encoder.name ?? model.manifest.context?.encoder.kind ?? null,
      ...(softPerChunk > 1 && { softPerChunk }),
      ...(summarizer.model !== undefined && { summarizerModel: summarizer.model }),
      ...(beside.length > 0 && { beside }),
      ...(unparsed > 0 && { unparsed }),
      benchmark: basename(resolve(options.benchmark)),
      survey,
      arms: specs,
      codeBleuVariant: options.codeBleu,
      figures,
      comparisons: comparisonsOf(
        specs.map(({ name }) => name),
        samples,
      ),
      gate: requireBetterThan === undefined ? null : gateOf(gateArm, requireBetterThan, gateBy, samples),
      samples,
    };
  } finally {
    await contexts.close();
    rewriters.dispose();
    scorer.dispose();
  }
}

/** The key in a file; undefined where none is named. */
const apiKeyOf = async (flag: string, file: string | undefined) =>
  file === undefined ? undefined : (await atPath(`${flag} ${file}`, () => readFile(file, 'utf8'))).trim();

/** The model that summarises: that of another server, or the one that is evaluated. */
async function summarizerOf(
  { summarizer, summarizerModel, summarizerKeyFile, timeoutMs }: EvaluateOptions,
  own: QualityClient,
  signal: AbortSignal,
): Promise<Summarizer> {
  if (summarizer === undefined) return { client: own, url: '', model: undefined };
  const url = summarizer.replace(/\/+$/, '').replace(/\/v1$/, '');
  const apiKey = await apiKeyOf('--summarizer-key-file', summarizerKeyFile);
  const client = new QualityClient({ url, apiKey, timeoutMs, signal });
  return { client, url, model: summarizerModel ?? (await client.firstModel()) };
}

/** @throws ServingError config_invalid where the longest request would not fit: the server would cut its code. */
async function assertRoom(
  client: QualityClient,
  options: EvaluateOptions,
  softPerChunk: number,
  longestTarget: number,
): Promise<void> {
  const [needed, has] = [tokensOf(options, softPerChunk, longestTarget), await client.capacity()];
  if (has === undefined || needed <= has) return;
  throw new ServingError(
    'config_invalid',
    `--prompt-tokens ${options.promptTokens}, --text-tokens ${options.textTokens} and a target of ${longestTarget} ` +
      `tokens may take ${needed} tokens, and the system holds ${has}: lower them, or raise --capacity`,
  );
}
