/** Rows of benchmarks in each published format, about one made repository of Python. */
import type { Format } from '../../bench/quality/command.ts';

export const REPOSITORY = 'shop';

/** Files of the made repository: `cart.py` calls what the others define. */
export const FILES: Readonly<Record<string, string>> = {
  'cart.py': [
    'from money import round_price',
    'from stock import reserve_item',
    '',
    'class Cart:',
    '    def __init__(self):',
    '        self.items = []',
    '',
    '    def add(self, item):',
    '        reserve_item(item)',
    '        self.items.append(item)',
    '',
    '    def total(self):',
    '        return round_price(sum(item.price for item in self.items))',
    '',
    '    def clear(self):',
    '        self.items = []',
    '',
  ].join('\n'),
  'money.py': 'def round_price(price):\n    return round(price, 2)\n\ndef as_text(price):\n    return f"{price:.2f}"\n',
  'stock.py': 'STOCK = {}\n\ndef reserve_item(item):\n    STOCK[item.name] = STOCK.get(item.name, 0) - 1\n',
};

/** Gaps of `cart.py`, by the index of their line from 0. */
const GAPS = [5, 8, 9, 12, 15];

const CHUNKS = [
  { path: 'money.py', text: FILES['money.py']!.trimEnd() },
  { path: 'stock.py', text: FILES['stock.py']!.trimEnd() },
];

const commented = (text: string) => text.replace(/^/gm, '# ');
export const CONTEXT_TEXT = [
  '# Here are some relevant code fragments from other files of the repo:\n',
  ...CHUNKS.map(({ path, text }) => `${commented(`the below code fragment can be found in:\n${path}\n${text}`)}\n`),
].join('\n');

/** A row about the gap at a line. */
export function benchmarkRow(format: Format, line = GAPS[0]!): Record<string, unknown> {
  const lines = FILES['cart.py']!.split('\n');
  const target = lines[line]!.trim();
  const left = `${lines.slice(0, line).join('\n')}\n${lines[line]!.slice(0, lines[line]!.length - target.length)}`;
  const right = `\n${lines.slice(line + 1).join('\n')}`;
  const id = `${REPOSITORY}/${line}`;
  const plain = { prompt: left, groundtruth: target, right_context: right };
  const list = CHUNKS.map(({ path, text }, i) => ({ retrieved_chunk: text, filename: path, score: 1 - i / 10 }));
  const place = { task_id: id, repository: REPOSITORY };
  switch (format) {
    case 'repoeval': {
      const tuple = [REPOSITORY, 'cart.py'];
      const metadata = {
        task_id: id,
        ground_truth: target,
        fpath_tuple: tuple,
        context_start_lineno: 0,
        line_no: line,
      };
      return { prompt: left, metadata };
    }
    case 'cceval': {
      const numbers = {
        context_start_lineno: 0,
        groundtruth_start_lineno: line,
        right_context_start_lineno: line + 1,
      };
      const metadata = { ...place, file: 'cart.py', ...numbers };
      return { ...plain, metadata, crossfile_context: { text: CONTEXT_TEXT, list } };
    }
    case 'longeval':
      return { ...plain, metadata: { ...place, filepath: 'cart.py' }, crossfile_context: { text: CONTEXT_TEXT } };
    case 'authors':
      return {
        ...plain,
        metadata: { ...place, filepath: 'cart.py' },
        crossfile_context: CONTEXT_TEXT,
        crossfile_context_qwen_compressed: 'round_price item',
        crossfile_context_qwen_summarized: { text: 'rounds prices' },
        crossfile_context_zipt5_compressed: 'def round_price reserve_item',
      };
    case 'llavacode':
      return {
        ...plain,
        crossfile_array: CHUNKS.map(({ path, text }) => `${path}\n${text}`),
        metadata: { ...place, file: 'cart.py', lineno: line + 1, lines: 1 },
      };
  }
}

/** A benchmark of several rows as a file of JSON lines. */
export const benchmarkText = (format: Format, rows = GAPS.length): string =>
  GAPS.slice(0, rows)
    .map((line) => `${JSON.stringify(benchmarkRow(format, line))}\n`)
    .join('');

export const GIVEN_CHUNKS = CHUNKS;
