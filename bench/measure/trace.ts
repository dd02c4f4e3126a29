/** Traces of requests in Mooncake's format: JSON lines `{timestamp (ms), input_length, output_length, hash_ids}`. */
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';

const row = z.object({
  timestamp: z.number().min(0),
  input_length: z.int().min(1),
  output_length: z.int().min(1),
  /** One id per 512 prompt tokens; equal ids stand for equal text. */
  hash_ids: z.array(z.int()).default([]),
});

interface TraceRequest {
  /** Time from the start of the trace. */
  readonly atMs: number;
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly blocks: readonly number[];
}

/** Prompt tokens that one of `hash_ids` stands for. */
export const TRACE_BLOCK_TOKENS = 512;

/**
 * Reads a trace into requests in order of time, the first of them at 0.
 * @param text content of the file.
 * @throws ServingError invalid_request, naming the line at fault.
 */
export function parseTrace(text: string): TraceRequest[] {
  const requests = text.split('\n').flatMap((line, i) => (line.trim() === '' ? [] : [parseLine(line, i + 1)]));
  requests.sort((a, b) => a.atMs - b.atMs);
  const start = requests[0]?.atMs ?? 0;
  return requests.map((request) => ({ ...request, atMs: request.atMs - start }));
}

function parseLine(line: string, number: number): TraceRequest {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw new ServingError('invalid_request', `line ${number} of the trace is not valid JSON: ${line.slice(0, 80)}`);
  }
  const parsed = row.safeParse(value);
  if (!parsed.success) {
    const why = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join('; ');
    throw new ServingError('invalid_request', `line ${number} of the trace is not a request: ${why}`);
  }
  const { timestamp, input_length, output_length, hash_ids } = parsed.data;
  return { atMs: timestamp, inputTokens: input_length, outputTokens: output_length, blocks: hash_ids };
}
