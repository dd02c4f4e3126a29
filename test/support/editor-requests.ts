/**
 * Requests as the current versions of editors' plugins send them: names and values of their fields are theirs, the code
 * in them is ours.
 */
const PREFIX = 'import os\n\n\ndef total(cart):\n    rate = 0.19\n';
const SUFFIX = '\n    return net * (1 + rate)\n';
const LINE = '    net = sum(';
const EXTRA = [
  {
    text: 'class Cart:\n    def __init__(self):\n        self.items = []\n',
    time: [1769853718, 0],
    filename: 'cart.py',
  },
  { text: 'RATES = {"de": 0.19}\n', time: [1769853719, 0], filename: 'rates.py' },
];
const QWEN = { prefix: '<|fim_prefix|>', suffix: '<|fim_suffix|>', middle: '<|fim_middle|>' };
const framed = `${QWEN.prefix}${PREFIX}${LINE}${QWEN.suffix}${SUFFIX}${QWEN.middle}`;

/** llama.vim of January 2026, `autoload/llama.vim`: a completion, and the warm-up between two. */
export const LLAMA_VIM = {
  id_slot: 0,
  input_prefix: PREFIX,
  input_suffix: SUFFIX,
  input_extra: EXTRA,
  prompt: LINE,
  n_predict: 128,
  stop: [],
  n_indent: 4,
  top_k: 40,
  top_p: 0.9,
  samplers: ['top_k', 'top_p', 'infill'],
  stream: false,
  cache_prompt: true,
  t_max_prompt_ms: 500,
  t_max_predict_ms: 250,
  response_fields: [
    'content',
    'timings/prompt_n',
    'timings/prompt_ms',
    'timings/prompt_per_token_ms',
    'timings/prompt_per_second',
    'timings/predicted_n',
    'timings/predicted_ms',
    'timings/predicted_per_token_ms',
    'timings/predicted_per_second',
    'truncated',
    'tokens_cached',
  ],
};
export const LLAMA_VIM_WARM_UP = {
  id_slot: 0,
  input_prefix: '',
  input_suffix: '',
  input_extra: EXTRA,
  prompt: '',
  n_predict: 0,
  temperature: 0,
  samplers: [],
  stream: false,
  cache_prompt: true,
  t_max_prompt_ms: 1,
  t_max_predict_ms: 1,
  response_fields: [''],
};

/** llama.vscode of August 2026, `src/llama-server.ts`, with three completions. */
export const LLAMA_VSCODE = {
  id_slot: 0,
  input_prefix: PREFIX,
  input_suffix: SUFFIX,
  input_extra: EXTRA.map(({ text, filename }) => ({ text, time: 1769853718123, filename })),
  prompt: LINE,
  n_predict: 128,
  n_cmpl: 3,
  top_k: 40,
  top_p: 0.99,
  stream: false,
  samplers: ['top_k', 'top_p', 'infill'],
  cache_prompt: true,
  n_indent: 4,
  t_max_prompt_ms: 500,
  t_max_predict_ms: 2500,
  lora: [{ id: 0, scale: 0.5 }],
};
export const LLAMA_VSCODE_TOKENIZE = { content: PREFIX, add_special: false, parse_special: true };

/** minuet-ai.nvim of August 2026: `openai_fim_compatible` with suffix, and with a template for llama.cpp. */
export const MINUET = {
  model: 'tiny',
  stream: true,
  max_tokens: 56,
  top_p: 0.9,
  prompt: `# language: python\n${PREFIX}${LINE}`,
  suffix: SUFFIX,
};
export const MINUET_TEMPLATE = { model: 'tiny', stream: true, max_tokens: 56, top_p: 0.9, prompt: framed };
/** minuet's `codestral`. */
export const MINUET_CODESTRAL = {
  model: 'tiny',
  stream: true,
  max_tokens: 256,
  stop: ['\n\n'],
  prompt: `${PREFIX}${LINE}`,
  suffix: SUFFIX,
};

/** Zed of 2026, `crates/edit_prediction`: by Ollama, and by an API that is compatible with OpenAI's. */
const ZED_STOPS = ['<|endoftext|>', '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>'];
export const ZED_OLLAMA = {
  model: 'tiny',
  prompt: framed,
  raw: true,
  stream: false,
  options: { num_predict: 64, temperature: 0.2, stop: [...ZED_STOPS, '<|file_separator|>', '<PRE>', '[PREFIX]'] },
};
export const ZED_OPENAI = { model: 'tiny', prompt: framed, max_tokens: 64, stop: ZED_STOPS };

/** tabby-agent of Tabby 0.32. */
export const TABBY = {
  language: 'python',
  segments: {
    prefix: `${PREFIX}${LINE}`,
    suffix: SUFFIX,
    filepath: 'shop/total.py',
    git_url: 'https://example.com/acme/shop.git',
    declarations: [{ filepath: 'shop/cart.py', body: 'class Cart:\n    items: list\n' }],
    relevant_snippets_from_changed_files: [{ filepath: 'shop/rates.py', body: 'RATES = {"de": 0.19}\n', score: 0.9 }],
    relevant_snippets_from_recently_opened_files: [{ filepath: 'shop/tax.py', body: 'def tax(): ...\n', score: 0.4 }],
    clipboard: 'net_total',
  },
  temperature: null,
  user: undefined,
};
