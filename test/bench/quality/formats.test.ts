import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FORMATS, type Format } from '../../../bench/quality/command.ts';
import { commentedChunks, formatOf, readSample } from '../../../bench/quality/formats.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { benchmarkRow, CONTEXT_TEXT, GIVEN_CHUNKS } from '../../support/benchmark-rows.ts';

const read = (format: Format, value: unknown, onUnread = (_: string) => {}) =>
  readSample(format, 'some.jsonl:7', value, onUnread);

/** A row without one field, by its path. */
function without(row: Record<string, unknown>, path: string): Record<string, unknown> {
  const copy = structuredClone(row);
  const parts = path.split('.');
  const inner = parts.slice(0, -1).reduce((at, part) => at[part] as Record<string, unknown>, copy);
  delete inner[parts.at(-1)!];
  return copy;
}

/** A row with another value in one field. */
function having(row: Record<string, unknown>, path: string, value: unknown): Record<string, unknown> {
  const copy = structuredClone(row);
  const parts = path.split('.');
  const inner = parts.slice(0, -1).reduce((at, part) => at[part] as Record<string, unknown>, copy);
  inner[parts.at(-1)!] = value;
  return copy;
}

describe('a row of a benchmark', () => {
  it.each(FORMATS)('the format %s is told by its fields, and read field by field', (format) => {
    const row = benchmarkRow(format, 8);
    expect(formatOf('some.jsonl:1', row)).toBe(format);
    const sample = read(format, row, (field) => expect.unreachable(`${field} is not read`));
    expect(sample).toMatchObject({
      name: 'some.jsonl:7',
      id: 'shop/8',
      repository: 'shop',
      path: 'cart.py',
      target: 'reserve_item(item)',
      left: expect.stringMatching(/def add\(self, item\):\n {8}$/),
    });
    if (format === 'repoeval') expect(sample).toMatchObject({ right: undefined, chunks: undefined, line: 8 });
    else {
      expect(sample.right).toMatch(/^\n {8}self.items.append/);
      const filled = (text: string) => text.replace(/\n\n/g, '\n');
      expect(sample.chunks!.map(({ path }) => path)).toEqual(['money.py', 'stock.py']);
      expect(sample.chunks!.map(({ text }) => filled(text))).toEqual(GIVEN_CHUNKS.map(({ text }) => filled(text)));
    }
  });

  it("what other compressors made of a context is read from the authors' fields", () => {
    expect(read('authors', benchmarkRow('authors')).rewritten).toEqual({
      'given-pruned': 'round_price item',
      'given-summary': 'rounds prices',
      zip: 'def round_price reserve_item',
    });
  });

  it.each([
    ['repoeval', 'metadata.ground_truth'],
    ['repoeval', 'metadata.fpath_tuple'],
    ['repoeval', 'metadata.line_no'],
    ['cceval', 'groundtruth'],
    ['cceval', 'right_context'],
    ['cceval', 'metadata.repository'],
    ['cceval', 'metadata.file'],
    ['longeval', 'metadata.task_id'],
    ['authors', 'crossfile_context'],
    ['llavacode', 'crossfile_array'],
  ] as const)('a row of %s without %s is refused with file, line and field', (format, field) => {
    const refused = () => read(format, without(benchmarkRow(format), field));
    expect(refused).toThrow(expect.objectContaining({ code: 'sample_invalid' }));
    expect(refused).toThrow(new RegExp(`^some\\.jsonl:7 is not a sample of ${format}: ${field.replace('.', '\\.')}`));
  });

  it.each([
    ['repoeval', 'metadata.fpath_tuple', ['shop'], /must hold the repository and the path/],
    ['cceval', 'metadata.groundtruth_start_lineno', -1, /groundtruth_start_lineno/],
    ['cceval', 'crossfile_context', 'a text', /crossfile_context/],
    ['longeval', 'prompt', 7, /prompt/],
    ['authors', 'crossfile_context', 7, /must be a text, or an object with text/],
    ['llavacode', 'groundtruth', '', /has no text/],
    ['llavacode', 'groundtruth', ' \n', /white space alone/],
  ] as const)('a row of %s whose %s is %j is refused', (format, field, value, message) => {
    expect(() => read(format, having(benchmarkRow(format), field, value))).toThrow(message);
  });

  it('fields that are not read are told, within metadata too', () => {
    const row = having(having(benchmarkRow('cceval'), 'extra', 1), 'metadata.stars', 5);
    const unread: string[] = [];
    read('cceval', row, (field) => unread.push(field));
    expect(unread).toEqual(['extra', 'metadata.stars']);
  });

  it('any text stands in a sample as it stands in the row', () => {
    const filled = fc.string({ minLength: 1, unit: 'grapheme' }).filter((text) => text.trim() !== '');
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), filled, fc.string({ unit: 'grapheme' }), (left, target, right) => {
        const row = { ...benchmarkRow('cceval'), prompt: left, groundtruth: target, right_context: right };
        expect(read('cceval', JSON.parse(JSON.stringify(row)))).toMatchObject({ left, target, right });
      }),
    );
  });

  it('a damaged row is a sample or a coded error, whatever its format', () => {
    const damaged = fc
      .record({
        format: fc.constantFrom(...FORMATS),
        field: fc.constantFrom('prompt', 'metadata', 'crossfile_context', 'crossfile_array', 'metadata.task_id'),
        value: fc.jsonValue(),
      })
      .map(({ format, field, value }) => ({ format, row: having(benchmarkRow(format), field, value) as unknown }));
    const foreign = fc.record({ format: fc.constantFrom(...FORMATS), row: fc.jsonValue() as fc.Arbitrary<unknown> });
    fc.assert(
      fc.property(fc.oneof(damaged, foreign), ({ format, row }) => {
        for (const attempt of [() => read(format, row), () => formatOf('some.jsonl:7', row)]) {
          try {
            attempt();
          } catch (error) {
            expect(error).toBeInstanceOf(ServingError);
            expect(error).toMatchObject({ code: 'sample_invalid', message: expect.stringContaining('some.jsonl:7') });
          }
        }
      }),
      { numRuns: 500 },
    );
  });

  it('a first line of no format is refused with the fields that it has', () => {
    expect(() => formatOf('x.jsonl:1', { code: 1, label: 2 })).toThrow(/no format has these fields \(code, label\)/);
  });
});

describe('chunks in one text', () => {
  it('are told by their headings, without the marks of comments and without blank lines', () => {
    expect(commentedChunks(CONTEXT_TEXT).map(({ path }) => path)).toEqual(['money.py', 'stock.py']);
    const java = CONTEXT_TEXT.replace(/^#/gm, '//').replaceAll('.py', '.java');
    expect(commentedChunks(java)[1]).toEqual({
      path: 'stock.java',
      text: 'STOCK = {}\ndef reserve_item(item):\n    STOCK[item.name] = STOCK.get(item.name, 0) - 1',
    });
    expect(commentedChunks('no headings')).toEqual([]);
  });
});
