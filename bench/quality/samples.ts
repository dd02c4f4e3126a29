/**
 * The samples of a benchmark: all of them are read and checked before the first is evaluated, so that a damaged line is
 * known at once, and then read again one by one, because a benchmark may be larger than memory.
 */
import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { extname, join, normalize, sep } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { grammarOf } from '../../services/lib/rag/encode/grammars.ts';
import { jsonLines } from '../../training/data/json-lines.ts';
import { MANIFEST, readManifest } from '../../training/data/manifest.ts';
import type { ScoredLanguage } from '../../training/metrics/keywords.ts';
import type { Arm, EvaluateOptions, Format, Rewriter } from './command.ts';
import { formatOf, readSample, type Sample } from './formats.ts';

/** What a benchmark holds. */
export interface Survey {
  readonly format: Format;
  /** Of the code of all samples. */
  readonly language: ScoredLanguage;
  /** SHA-256 over the files, in hex. */
  readonly digest: string;
  readonly samples: number;
  /** Tokens of the longest target. */
  readonly longestTarget: number;
  /** Samples that will be evaluated. */
  readonly taken: number;
  /** How many samples have a field that is not read, by its name. */
  readonly unread: Readonly<Record<string, number>>;
  /** Samples with a task id that an earlier one has. */
  readonly repeatedIds: number;
  /** Samples without chunks: their prompts have no context in the benchmark's file. */
  readonly withoutChunks: number;
}

type Choice = Pick<
  EvaluateOptions,
  'benchmark' | 'format' | 'language' | 'samples' | 'arms' | 'context' | 'repositories'
>;

/** Lines after a target that RepoEval's tasks get, as Repoformer prepares them. */
const RIGHT_LINES = 50;

const FIELD_OF: Partial<Record<Arm, string>> = {
  zip: 'crossfile_context_zipt5_compressed',
  'given-pruned': 'crossfile_context_qwen_compressed',
  'given-summary': 'crossfile_context_qwen_summarized',
};

export class Benchmark {
  readonly survey: Survey;
  readonly #files: readonly BenchmarkFile[];
  readonly #repositories: string | undefined;

  private constructor(survey: Survey, files: readonly BenchmarkFile[], repositories: string | undefined) {
    this.survey = survey;
    this.#files = files;
    this.#repositories = repositories;
  }

  /**
   * Reads the whole benchmark once.
   * @param lengthOf a text in tokens of the language model
   * @throws ServingError path_unusable; sample_invalid, with file and line; config_invalid where an arm asks for what
   *   the benchmark does not hold, or no language can be told.
   */
  static async open(choice: Choice, lengthOf: (text: string) => number, signal: AbortSignal): Promise<Benchmark> {
    const files = await filesOf(choice.benchmark);
    const digest = createHash('sha256');
    const ids = new Set<string>();
    const unread = new Map<string, number>();
    let format: Format | undefined = choice.format === 'auto' ? undefined : choice.format;
    let language: ScoredLanguage | undefined = choice.language === 'auto' ? undefined : choice.language;
    let [samples, repeatedIds, withoutChunks, longestTarget] = [0, 0, 0, 0];
    for (const { file, sha256 } of files) {
      const own = createHash('sha256');
      for await (const { name, value } of jsonLines(file, own)) {
        signal.throwIfAborted();
        format ??= formatOf(name, value);
        const sample = readSample(format, name, value, (field) => unread.set(field, (unread.get(field) ?? 0) + 1));
        if (choice.language === 'auto') language = sameLanguage(sample, language);
        assertHolds(sample, choice);
        if (sample.right === undefined) await rightOf(sample, choice.repositories);
        if (ids.has(sample.id)) repeatedIds++;
        ids.add(sample.id);
        if ((sample.chunks?.length ?? 0) === 0) withoutChunks++;
        longestTarget = Math.max(longestTarget, lengthOf(sample.target));
        samples++;
      }
      const found = own.digest('hex');
      if (sha256 !== undefined && found !== sha256) throw otherShard(file, found, sha256);
      digest.update(`${found}\n`);
    }
    if (format === undefined || language === undefined) {
      throw new ServingError('sample_invalid', `--benchmark ${choice.benchmark} has no samples: name another file`);
    }
    const survey = {
      format,
      language,
      digest: digest.digest('hex'),
      samples,
      longestTarget,
      taken: Math.min(samples, choice.samples ?? samples),
      unread: Object.fromEntries([...unread].sort(([a], [b]) => a.localeCompare(b))),
      repeatedIds,
      withoutChunks,
    };
    return new Benchmark(survey, files, choice.repositories);
  }

  /**
   * The samples that are evaluated, evenly from the whole benchmark and in its order.
   * @throws ServingError as {@link open}.
   */
  async *read(): AsyncGenerator<Sample & { readonly right: string }> {
    const { format, samples, taken } = this.survey;
    const isTaken = (i: number) => Math.floor(((i + 1) * taken) / samples) > Math.floor((i * taken) / samples);
    let index = 0;
    for (const { file } of this.#files) {
      for await (const { name, value } of jsonLines(file)) {
        if (!isTaken(index++)) continue;
        const sample = readSample(format, name, value, () => {});
        yield { ...sample, right: sample.right ?? (await rightOf(sample, this.#repositories)) };
      }
    }
  }
}

/**
 * The lines after the target, from the file in its repository; '' where no repositories are given.
 * @throws ServingError sample_invalid where the target does not stand there; path_unusable
 */
async function rightOf(
  { name, repository = '', path, line, target }: Sample,
  repositories: string | undefined,
): Promise<string> {
  if (repositories === undefined || line === undefined) return '';
  const file = within(repositories, repository, path, name);
  const lines = (await atPath(`${name}: ${file}`, () => readFile(file, 'utf8'))).split('\n');
  const targetLines = target.replace(/\n$/, '').split('\n');
  // Published line numbers count from 0 or from 1.
  const start = [line, line - 1].find((at) => lines[at]?.trim() === targetLines[0]!.trim());
  if (start === undefined) {
    throw new ServingError(
      'sample_invalid',
      `${name}: its target is not at line ${line} of ${file}: ` +
        'give --repositories the versions that the benchmark has',
    );
  }
  const end = start + targetLines.length;
  return end < lines.length ? `\n${lines.slice(end, end + RIGHT_LINES).join('\n')}` : '';
}

/**
 * The path of a file of a repository below the folder of all repositories.
 * @throws ServingError sample_invalid for a path that leads out of it.
 */
export function within(repositories: string, repository: string, path: string, name: string): string {
  const inside = normalize(join(repository, path));
  if (repository === '' || inside.startsWith('..') || inside.startsWith(sep)) {
    const named = JSON.stringify(join(repository, path));
    throw new ServingError('sample_invalid', `${name}: ${named} is not a path in a repository of --repositories`);
  }
  return join(repositories, inside);
}

interface BenchmarkFile {
  readonly file: string;
  /** In hex; undefined for a file that no manifest names. */
  readonly sha256: string | undefined;
}

const otherShard = (file: string, found: string, sha256: string) =>
  new ServingError(
    'sample_invalid',
    `${file} is not the shard of ${MANIFEST}: its SHA-256 is ${found}, not ${sha256}; make the data set again`,
  );

/** @throws ServingError path_unusable, sample_invalid */
async function filesOf(path: string): Promise<BenchmarkFile[]> {
  const isFolder = (await atPath(`--benchmark ${path}`, () => stat(path))).isDirectory();
  if (!isFolder) return [{ file: path, sha256: undefined }];
  const { shards } = (await readManifest(join(path, MANIFEST))).splits.valid;
  return shards.map(({ file, sha256 }) => ({ file: join(path, file), sha256 }));
}

const LANGUAGE_OF = {
  python: 'python',
  java: 'java',
  javascript: 'javascript',
  typescript: 'typescript',
  tsx: 'typescript',
  'c-sharp': 'csharp',
} as const;

/** @throws ServingError config_invalid, sample_invalid */
function sameLanguage({ name, path, repository, chunks }: Sample, before: ScoredLanguage | undefined): ScoredLanguage {
  const known = path || chunks?.find((chunk) => chunk.path !== '')?.path || '';
  const grammar = grammarOf(known);
  const found =
    grammar !== undefined && grammar in LANGUAGE_OF ? LANGUAGE_OF[grammar as keyof typeof LANGUAGE_OF] : before;
  if (found === undefined) {
    const what =
      known === '' ? `no path of a file (${repository ?? 'no repository'})` : `the ending ${extname(known) || 'none'}`;
    throw new ServingError(
      'config_invalid',
      `${name} has ${what}, which names no language that is scored: give --language`,
    );
  }
  if (before !== undefined && found !== before) {
    throw new ServingError(
      'sample_invalid',
      `${name} is ${found}, and lines before it are ${before}: evaluate one language at a time, or give --language`,
    );
  }
  return found;
}

/** @throws ServingError sample_invalid, config_invalid */
function assertHolds(sample: Sample, { arms, context, repositories }: Choice): void {
  for (const arm of arms) {
    const field = FIELD_OF[arm];
    if (field === undefined || sample.rewritten[arm as Rewriter] !== undefined) continue;
    throw new ServingError(
      'sample_invalid',
      `${sample.name}: the arm ${arm} needs the field ${field}: leave the arm out`,
    );
  }
  if (arms.every((arm) => arm === 'off' || FIELD_OF[arm] !== undefined)) return;
  if (context === 'file') {
    if (sample.chunks !== undefined) return;
    throw new ServingError(
      'config_invalid',
      `${sample.name} has no chunks in its fields: index the repositories with --context index --repositories DIR`,
    );
  }
  if (repositories === undefined) {
    throw new ServingError('config_invalid', '--context index needs --repositories: the folder of all repositories');
  }
  if (sample.repository === undefined || sample.path === '') {
    throw new ServingError('sample_invalid', `${sample.name} names no repository and file: use --context file`);
  }
}
