/** The samples of one repository: its files are read and filtered, holes drawn, and chunks found for each. */
import { type ErrorCode, ServingError } from '../../services/lib/process/errors.ts';
import type { Split } from '../data/manifest.ts';
import { ChunkIndex, type SourceFile } from './crossfile.ts';
import { unwantedText } from './file-filter.ts';
import { type Block, candidateBlocks, drawHole, type Hole, holeAt } from './holes.ts';
import { isLicenceFile, licenceOf } from './licences.ts';
import { neededNames } from './needed-names.ts';
import { RandomStream } from './random.ts';
import type { OpenRepository, Repository } from './repositories.ts';
import { type SampleRow, sampleRow } from './sample-row.ts';
import type { SeenFiles } from './seen-files.ts';
import type { DatasetOptions } from './settings.ts';
import { type Counts, countOne, type RepositoryReason } from './statistics.ts';
import type { FileSyntax, LanguageSyntax } from './syntax.ts';

/** A repository with its place in the data set. */
export interface Candidate {
  readonly repository: Repository;
  readonly split: Split;
  readonly licences: readonly string[] | undefined;
}

interface CodeFile extends SourceFile {
  readonly syntax: FileSyntax;
}

export interface Sampled {
  readonly row: SampleRow;
  /** Score of its best chunk. */
  readonly bestScore: number;
}

interface Place {
  readonly file: CodeFile;
  readonly hole: Hole;
}

/** Failures of this process or its machine: every other failure to read a repository is its own. */
const NOT_ITS_OWN: readonly ErrorCode[] = ['internal', 'spool_failed'];

export class Sampler {
  readonly #options: DatasetOptions;
  readonly #syntax: LanguageSyntax;
  readonly #seen: SeenFiles;
  readonly #warn: (text: string) => void;

  /** @param warn told of repositories that cannot be read */
  constructor(options: DatasetOptions, syntax: LanguageSyntax, seen: SeenFiles, warn: (text: string) => void) {
    this.#options = options;
    this.#syntax = syntax;
    this.#seen = seen;
    this.#warn = warn;
  }

  /**
   * The rows of a repository, in the order of path and line; what it adds and leaves out is counted.
   * @throws ServingError spool_failed, sample_invalid; the signal's reason.
   */
  async rows(candidate: Candidate, counts: Counts, signal: AbortSignal): Promise<Sampled[]> {
    signal.throwIfAborted();
    const { name } = candidate.repository;
    const files = await this.#read(candidate, counts, signal);
    if (!Array.isArray(files)) {
      countOne(counts.leftOut.repositories, files);
      return [];
    }
    const ofSplit = counts.splits[candidate.split];
    ofSplit.repositories++;
    ofSplit.files += files.length;
    const places = this.#draw(candidate, files, counts);
    const rows: (Sampled & { readonly order: number })[] = [];
    for (const lines of [...new Set(places.map(({ hole }) => hole.lines))].sort((a, b) => a - b)) {
      const index = await ChunkIndex.build(files, lines, signal); // one at a time lies in memory
      for (const [order, { file, hole }] of places.entries()) {
        if (hole.lines !== lines) continue;
        const around = { path: file.path, ...aroundHole(file.text, hole) };
        const found = await index.search(around, this.#options.retriever, this.#options.chunks, signal);
        if (found.length < this.#options.chunks) {
          countOne(counts.leftOut.holes, 'few_chunks');
          continue;
        }
        const mark = this.#options.language === 'python' ? '#' : '//';
        const row = sampleRow(candidate.split, { repository: name, file, hole }, found, mark);
        if (this.#options.needsChunks && neededNames(row).length === 0) {
          countOne(counts.leftOut.holes, 'no_needed_name');
          continue;
        }
        rows.push({ order, row, bestScore: found[0]!.score });
      }
    }
    this.#seen.add(candidate.split, files); // at the end: a repository that was interrupted has not been seen
    return rows.sort((a, b) => a.order - b.order);
  }

  /** The files of a repository that are code, or why it is left out. */
  async #read(candidate: Candidate, counts: Counts, signal: AbortSignal): Promise<CodeFile[] | RepositoryReason> {
    let open: OpenRepository | undefined;
    try {
      open = await candidate.repository.open(signal);
      const refused = await this.#licenceRefused(candidate, open);
      return refused ? 'licence' : await this.#code(candidate, open, counts, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ServingError) || NOT_ITS_OWN.includes(error.code) || error.code === 'sample_invalid') {
        throw error;
      }
      this.#warn(`${candidate.repository.name} is left out: ${error.message}`);
      return 'unreadable';
    } finally {
      await open?.close();
    }
  }

  async #licenceRefused({ licences }: Candidate, open: OpenRepository): Promise<boolean> {
    const allowed = this.#options.licences;
    if (allowed === undefined) return false;
    if (licences !== undefined) return false; // they were looked at before it was opened
    for (const path of open.paths.filter(isLicenceFile)) {
      const source = await open.read(path);
      const licence = 'text' in source ? licenceOf(source.text) : undefined;
      if (licence !== undefined) return !allowed.includes(licence);
    }
    return true;
  }

  async #code(
    { repository, split }: Candidate,
    open: OpenRepository,
    counts: Counts,
    signal: AbortSignal,
  ): Promise<CodeFile[] | RepositoryReason> {
    const { minFiles, maxRepositoryBytes } = this.#options;
    const paths = open.paths.filter((path) => this.#syntax.covers(path));
    if (paths.length < minFiles) return 'few_files';
    const files: CodeFile[] = [];
    const texts = new Set<string>();
    let bytes = 0;
    for (const path of paths) {
      signal.throwIfAborted();
      const source = await open.read(path);
      if ('skipped' in source) {
        countOne(counts.leftOut.files, 'unwanted');
        continue;
      }
      const text = source.text.replaceAll('\r\n', '\n');
      bytes += text.length;
      if (bytes > maxRepositoryBytes) return 'too_large';
      const reason =
        unwantedText(text) ?? (texts.has(text) ? 'copy' : undefined) ?? this.#seen.reasonAgainst(split, text);
      const syntax = reason === undefined ? this.#syntax.of(`${repository.name}/${path}`, path, text) : undefined;
      if (syntax === undefined) countOne(counts.leftOut.files, reason ?? 'unparsable');
      else {
        files.push({ path, text, syntax });
        texts.add(text);
      }
    }
    return files.length < minFiles ? 'few_files' : files;
  }

  /** Holes in the order of path and line. */
  #draw({ repository, split }: Candidate, files: readonly CodeFile[], counts: Counts): Place[] {
    const { seed, minImports, meanLines, perRepository } = this.#options;
    const random = new RandomStream(seed, repository.name);
    const blocks: { readonly file: CodeFile; readonly block: Block }[] = files.flatMap((file) => {
      if (file.syntax.imports < minImports) return [];
      return candidateBlocks(file.text.split('\n'), file.syntax.isCode).map((block) => ({ file, block }));
    });
    const places: Place[] = [];
    for (const { file, block } of random.shuffle(blocks)) {
      if (places.length === perRepository) break;
      const lines = file.text.split('\n');
      const hole =
        split === 'valid'
          ? holeAt(lines, block[random.below(block.length)]!, 1)
          : drawHole(lines, block, meanLines, random);
      if (hole) places.push({ file, hole });
      else countOne(counts.leftOut.holes, 'does_not_fit');
    }
    const order = new Map(files.map((file, i) => [file, i]));
    return places.sort((a, b) => order.get(a.file)! - order.get(b.file)! || a.hole.start - b.hole.start);
  }
}

function aroundHole(text: string, { start, end }: Hole): { readonly before: string; readonly after: string } {
  const lines = text.split('\n');
  return { before: lines.slice(0, start).join('\n'), after: lines.slice(end).join('\n') };
}
