/** A hole as a row of the data set, in the fields of the authors' code. */
import type { Split } from '../data/manifest.ts';
import type { FoundChunk, SourceFile } from './crossfile.ts';
import type { Hole } from './holes.ts';

/** Text of a row before and after its hole, in UTF-16 units: some 3,000 and 1,500 tokens, more than prompts take. */
const LEFT_CHARACTERS = 12_000;
const RIGHT_CHARACTERS = 6_000;

export interface SampleRow {
  readonly prompt: string;
  readonly right_context: string;
  readonly groundtruth: string;
  /** Best first; the first line of each is its path. */
  readonly crossfile_array: readonly string[];
  /** For benchmarks, which read chunks in this form. */
  readonly crossfile_context?: {
    readonly text: string;
    readonly list: readonly {
      readonly retrieved_chunk: string;
      readonly filename: string;
      readonly score: number;
    }[];
  };
  readonly metadata: {
    readonly task_id: string;
    readonly repository: string;
    readonly file: string;
    /** The first line of the hole, from 1. */
    readonly lineno: number;
    readonly lines: number;
  };
}

/** Whole lines at the end of a text. */
function lastLines(text: string, characters: number): string {
  if (text.length <= characters) return text;
  return text.slice(text.indexOf('\n', text.length - characters) + 1);
}

/** Whole lines at the beginning of a text. */
function firstLines(text: string, characters: number): string {
  return text.length <= characters ? text : text.slice(0, text.lastIndexOf('\n', characters) + 1);
}

/**
 * For training the indentation of the hole's first line belongs to the target, as in the authors' data. For validation
 * the cursor stands behind it and the target has no white space at its ends, as in RepoEval: it would count as similar.
 * @param commentMark begins a comment in the language
 */
export function sampleRow(
  split: Split,
  place: { readonly repository: string; readonly file: SourceFile; readonly hole: Hole },
  found: readonly FoundChunk[],
  commentMark: string,
): SampleRow {
  const { repository, file, hole } = place;
  const lines = file.text.split('\n');
  const target = lines.slice(hole.start, hole.end).join('\n');
  const indent = split === 'valid' ? target.slice(0, target.length - target.trimStart().length) : '';
  const before = `${lines.slice(0, hole.start).join('\n')}\n`;
  const after = hole.end < lines.length ? `\n${lines.slice(hole.end).join('\n')}` : '';
  return {
    prompt: lastLines(before, LEFT_CHARACTERS) + indent,
    right_context: firstLines(after, RIGHT_CHARACTERS),
    groundtruth: split === 'valid' ? target.trim() : target,
    crossfile_array: found.map(({ path, text }) => `${path}\n${text}`),
    ...(split === 'valid' && { crossfile_context: crossfileContext(found, commentMark) }),
    metadata: {
      task_id: `${repository}/${file.path}:${hole.start + 1}`,
      repository,
      file: file.path,
      lineno: hole.start + 1,
      lines: hole.lines,
    },
  };
}

function crossfileContext(found: readonly FoundChunk[], mark: string) {
  const comment = (text: string) => text.replaceAll(/^/gm, `${mark} `);
  const parts = found.map(
    ({ path, text }) => `${comment(`the below code fragment can be found in:\n${path}\n${text}`)}\n`,
  );
  const head = `${mark} Here are some relevant code fragments from other files of the repo:\n`;
  return {
    text: [head, ...parts].join('\n'),
    list: found.map(({ path, text, score }) => ({ retrieved_chunk: text, filename: path, score })),
  };
}
