"""Make the sample chats of this folder: every kind of row that omniprep reads, and a file of broken ones.

    python data_samples/make_samples.py            # rewrites text.jsonl, images.jsonl, ... and media/

Pictures and the video are drawn here; speech is spoken by espeak-ng (Debian: apt-get install espeak-ng), and where
that is not installed the committed clips stay as they are; the two photographs are scikit-learn's sample images, made
smaller (their licenses: README.md). Nothing is random, so the drawn files change only when this script or an encoder
does.
"""

import base64
import importlib.util
import io
import json
import math
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
MEDIA = HERE / "media"
SPEECH = {
    "weather.flac": ("en-us", "The weather tomorrow will be sunny, with a light wind from the west."),
    "train.mp3": ("en-gb", "The train to York leaves at half past nine from platform four."),
    "numbers.wav": ("en-us", "Seven. Twelve. Forty two."),
    "recipe.ogg": ("en-us", "Mix two cups of flour with one cup of milk, and bake for twenty minutes."),
    "gruss.flac": ("de", "Guten Morgen, wie geht es Ihnen heute?"),
}
NARRATION = "A red ball rolls to the right, and a blue ball bounces."


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


# Pictures


def draw_scene() -> Image.Image:
    """A house by a lake, 448 x 336."""
    image = Image.new("RGB", (448, 336), "#9fd3f5")
    d = ImageDraw.Draw(image)
    d.ellipse((350, 24, 414, 88), fill="#ffd94a")
    d.polygon([(0, 220), (110, 110), (230, 220)], fill="#7d8a97")
    d.polygon([(120, 220), (250, 130), (390, 220)], fill="#8f9caa")
    d.rectangle((0, 220, 448, 336), fill="#6fae54")
    d.ellipse((250, 246, 440, 322), fill="#3f86c6")
    d.rectangle((60, 190, 170, 280), fill="#d9542b")
    d.polygon([(48, 190), (115, 134), (182, 190)], fill="#70341d")
    d.rectangle((100, 230, 130, 280), fill="#4a2a17")
    d.rectangle((138, 206, 160, 228), fill="#fdf6c8")
    for x in (205, 232):
        d.rectangle((x + 8, 240, x + 14, 268), fill="#6b4423")
        d.polygon([(x - 6, 244), (x + 11, 190), (x + 28, 244)], fill="#2e6b34")
    return image


def draw_chart() -> Image.Image:
    """Cups of coffee sold by day, 392 x 280."""
    image = Image.new("RGB", (392, 280), "white")
    d = ImageDraw.Draw(image)
    d.text((110, 8), "Cups of coffee sold", fill="black", font=font(18))
    d.line((40, 240, 380, 240), fill="black", width=2)
    for n, (day, cups) in enumerate([("Mon", 120), ("Tue", 80), ("Wed", 150), ("Thu", 95), ("Fri", 190)]):
        x = 60 + n * 64
        d.rectangle((x, 240 - cups, x + 40, 240), fill="#8c5a2b")
        d.text((x + 6, 244), day, fill="black", font=font(14))
        d.text((x + 8, 222 - cups), str(cups), fill="black", font=font(14))
    return image


def draw_receipt() -> Image.Image:
    """A paper receipt, 280 x 420."""
    image = Image.new("RGB", (280, 420), "#fbfaf4")
    d = ImageDraw.Draw(image)
    d.text((64, 18), "CORNER BAKERY", fill="black", font=font(19))
    d.text((88, 44), "12 May, 08:41", fill="#444444", font=font(14))
    d.line((20, 72, 260, 72), fill="#888888")
    lines = [("2 croissants", "5.00"), ("1 rye bread", "4.20"), ("1 espresso", "2.30"), ("", ""), ("TOTAL", "11.50")]
    for n, (what, price) in enumerate(lines):
        d.text((24, 90 + n * 34), what, fill="black", font=font(17))
        d.text((212, 90 + n * 34), price, fill="black", font=font(17))
    d.line((20, 218, 260, 218), fill="#888888")
    d.text((76, 300), "Thank you!", fill="black", font=font(24))
    return image


def draw_shapes(swap: bool) -> Image.Image:
    """A circle and a square on gray, 224 x 224; swapped, their colors change places."""
    image = Image.new("RGB", (224, 224), "#d8d8d8")
    d = ImageDraw.Draw(image)
    first, second = ("#2050c0", "#d02020") if swap else ("#d02020", "#2050c0")
    d.ellipse((24, 70, 104, 150), fill=first)
    d.rectangle((128, 74, 200, 146), fill=second)
    return image


def draw_desk() -> Image.Image:
    """Three things on a desk with known places (for the grounding rows), 420 x 280."""
    image = Image.new("RGB", (420, 280), "#e9dcc7")
    d = ImageDraw.Draw(image)
    d.rectangle((0, 180, 420, 280), fill="#a8793f")
    d.rectangle((40, 120, 130, 200), fill="#f2f2f2", outline="#808080", width=3)
    d.arc((120, 136, 160, 180), 270, 90, fill="#808080", width=6)
    d.rectangle((190, 140, 300, 190), fill="#2f5fa8")
    d.rectangle((196, 128, 294, 140), fill="#b33a3a")
    d.ellipse((330, 150, 390, 210), fill="#d8382c")
    d.line((360, 150, 366, 134), fill="#4a2a17", width=4)
    return image


def draw_flag() -> Image.Image:
    """A small picture with transparency, 84 x 56 (palette PNG)."""
    image = Image.new("RGBA", (84, 56), (0, 0, 0, 0))
    d = ImageDraw.Draw(image)
    for n, color in enumerate(("#1f7a3a", "#ffffff", "#c8102e")):
        d.rectangle((n * 28, 0, n * 28 + 27, 55), fill=color)
    return image


def draw_banner() -> Image.Image:
    """A wide and low banner, 840 x 70."""
    image = Image.new("RGB", (840, 70), "#12355b")
    ImageDraw.Draw(image).text((30, 16), "OPEN DAY  *  SATURDAY 10 TO 4  *  ALL WELCOME", fill="#ffe08a", font=font(32))
    return image


def save_pictures() -> None:
    draw_scene().save(MEDIA / "scene.jpg", quality=88)
    draw_chart().save(MEDIA / "chart.png", optimize=True)
    draw_receipt().save(MEDIA / "receipt.png", optimize=True)
    draw_shapes(False).save(MEDIA / "shapes_a.png", optimize=True)
    draw_shapes(True).save(MEDIA / "shapes_b.webp", lossless=True)
    draw_desk().save(MEDIA / "desk.png", optimize=True)
    draw_flag().save(MEDIA / "flag.png", optimize=True)
    draw_banner().save(MEDIA / "banner.jpg", quality=85)
    spec = importlib.util.find_spec("sklearn")
    if spec and spec.submodule_search_locations:
        photos = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
        Image.open(photos / "china.jpg").resize((448, 299)).save(MEDIA / "photo_temple.jpg", quality=82)
        Image.open(photos / "flower.jpg").resize((392, 262)).save(MEDIA / "photo_flower.jpg", quality=82)


# Sound


def speak(voice: str, text: str) -> tuple[np.ndarray, int] | None:
    """Mono float samples and their rate, or None where espeak-ng is not installed."""
    if shutil.which("espeak-ng") is None:
        return None
    data = subprocess.run(
        ["espeak-ng", "-v", voice, "-s", "160", "--stdout", text], capture_output=True, check=True
    ).stdout
    with wave.open(io.BytesIO(data)) as file:
        # espeak-ng streams, so its header holds no length: read what is there.
        rate, raw = file.getframerate(), data[44:]
    return np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.float32) / 32768, rate


def save_speech() -> None:
    import soundfile
    import soxr

    for name, (voice, text) in SPEECH.items():
        spoken = speak(voice, text)
        if spoken is None:
            print(f"espeak-ng is not installed: {name} stays as it is")
            continue
        samples, rate = spoken
        target = 8000 if name.endswith(".wav") else 16000
        samples = soxr.resample(samples, rate, target)
        if name == "train.mp3":  # two channels, the second softer: it is mixed down when read
            samples = np.stack([samples, samples * 0.5], axis=1)
        soundfile.write(MEDIA / name, samples, target)
    t = np.arange(int(1.2 * 16000)) / 16000
    melody = sum(
        np.sin(2 * math.pi * f * t) * ((t >= n * 0.3) & (t < n * 0.3 + 0.28))
        for n, f in enumerate((440, 494, 554, 659))
    )
    soundfile.write(MEDIA / "melody.flac", (0.3 * melody).astype(np.float32), 16000)


# Video


def frames(count: int, width: int, height: int, rate: int) -> list[np.ndarray]:
    """A red ball that rolls to the right while a blue one bounces, uint8 (height, width, 3)."""
    out = []
    for n in range(count):
        image = Image.new("RGB", (width, height), "#eef2e6")
        d = ImageDraw.Draw(image)
        d.rectangle((0, height * 5 // 6, width, height), fill="#8a9a5b")
        x = 20 + (width - 60) * n // count
        d.ellipse((x, height * 5 // 6 - 40, x + 40, height * 5 // 6), fill="#d02020")
        y = height * 5 // 6 - 30 - abs(math.sin(2.2 * n / rate)) * height * 0.5
        d.ellipse((width * 2 // 3, y, width * 2 // 3 + 30, y + 30), fill="#2050c0")
        out.append(np.asarray(image))
    return out


def save_video(name: str, *, sound: np.ndarray | None, seconds: float, rate: int, width: int, height: int) -> None:
    """Write an mp4; `sound` is mono float32 at 16 kHz."""
    import av

    with av.open(str(MEDIA / name), "w", options={"movflags": "faststart"}) as out:
        video = out.add_stream("libx264", rate=rate, options={"crf": "30", "threads": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=16000, layout="mono", options={"b": "32k"}) if sound is not None else None
        for array in frames(int(seconds * rate), width, height, rate):
            out.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(video.encode(None))
        if audio is not None and sound is not None:
            pcm = (sound[None] * 32767).astype(np.int16)
            for start in range(0, pcm.shape[1] - 1023, 1024):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm[:, start : start + 1024]), "s16", "mono")
                block.sample_rate, block.pts = 16000, start
                out.mux(audio.encode(block))
            out.mux(audio.encode(None))


def save_videos() -> None:
    import soxr

    spoken = speak("en-us", NARRATION)
    if spoken is None:
        print("espeak-ng is not installed: the video with sound stays as it is")
    else:
        sound = soxr.resample(spoken[0], spoken[1], 16000)
        sound = np.pad(sound, (0, max(0, 4 * 16000 - len(sound))))[: 4 * 16000].astype(np.float32)
        save_video("balls_spoken.mp4", sound=sound, seconds=4, rate=12, width=280, height=210)
    save_video("balls_silent.mp4", sound=None, seconds=2.5, rate=10, width=210, height=280)
    for n, array in enumerate(frames(4, 168, 126, 2)):
        Image.fromarray(array).save(MEDIA / f"frame_{n}.png", optimize=True)


# Chats


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def chat(*turns: str, system: str | None = None) -> list[dict[str, object]]:
    """Messages that alternate between user and assistant."""
    head: list[dict[str, object]] = [{"role": "system", "content": system}] if system is not None else []
    return head + [(user, assistant)[n % 2](text) for n, text in enumerate(turns)]


WEATHER_TOOL = {
    "name": "get_weather",
    "description": "The weather of a city on a day.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "day": {"type": "string"}},
        "required": ["city"],
    },
}
STORY = (
    "Once there was a lighthouse keeper who counted the ships that passed. Every evening she wrote the number in a "
    "book: on Monday four, on Tuesday seven, on Wednesday none, because of the fog. On Thursday a small boat came to "
    "the rock, and its captain asked why she counted. 'Because,' she said, 'a light is only worth what it is seen by.'"
)


def text_rows() -> list[dict[str, object]]:
    return [
        {"messages": chat("What is the capital of France?", "Paris.")},
        {"messages": chat("Name three primes.", "2, 3 and 5.", "And the next two?", "7 and 11.")},
        {"messages": chat("Greet me.", "Ahoy!", "Again.", "Ahoy, mate!", system="You are a pirate.")},
        {"messages": chat("Say nothing special.", "All right.", system="")},
        {
            "conversations": [
                {"from": "human", "value": "Translate 'bread' to German."},
                {"from": "gpt", "value": "Brot."},
            ]
        },
        {
            "conversation": [{"human": "2 + 2?", "assistant": "4."}, {"human": "Times 3?", "assistant": "12."}],
            "system": "Be brief.",
        },
        {
            "instruction": "Put the words in alphabetical order.",
            "input": "pear, apple, fig",
            "output": "apple, fig, pear",
        },
        {
            "instruction": "Write a haiku about rain.",
            "input": "",
            "output": "Soft rain on the roof,\nthe cat counts every drop twice,\nthen sleeps on the sum.",
        },
        {
            "query": "And its population?",
            "response": "About two million.",
            "history": [["What is the capital of France?", "Paris."]],
        },
        {"messages": [user("Is 51 prime?"), assistant("<think>\n51 = 3 * 17\n</think>\n\nNo: 51 = 3 × 17.")]},
        {
            "messages": [
                user("Guess a number."),
                {**assistant("Maybe 12."), "loss": False},
                user("Higher."),
                assistant("17?"),
            ]
        },
        {"messages": chat("用一句话介绍长城。", "长城是中国古代修建的军事防御工程,全长两万多公里。")},
        {
            "messages": chat(
                f"Summarize this story in one sentence.\n\n{STORY}",
                "A lighthouse keeper counts the ships, since a light is worth only what sees it.",
            )
        },
        {
            "tools": json.dumps([WEATHER_TOOL]),
            "messages": [
                user("Will it rain in Oslo tomorrow?"),
                {
                    "role": "tool_call",
                    "content": json.dumps({"name": "get_weather", "arguments": {"city": "Oslo", "day": "tomorrow"}}),
                },
                {"role": "tool_response", "content": json.dumps({"rain_mm": 4.2, "temperature_c": 9})},
                assistant("Yes, about 4 mm, at 9 °C."),
            ],
        },
        {
            "tools": json.dumps([WEATHER_TOOL]),
            "conversations": [
                {"from": "human", "value": "Compare Rome and Bergen today."},
                {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": {"city": "Rome"}})},
                {"from": "observation", "value": json.dumps({"rain_mm": 0, "temperature_c": 27})},
                {
                    "from": "function_call",
                    "value": json.dumps({"name": "get_weather", "arguments": {"city": "Bergen"}}),
                },
                {"from": "observation", "value": json.dumps({"rain_mm": 11, "temperature_c": 13})},
                {"from": "gpt", "value": "Rome is dry at 27 °C; Bergen is wet at 13 °C."},
            ],
        },
    ]


def image_rows() -> list[dict[str, object]]:
    flag = base64.b64encode((MEDIA / "flag.png").read_bytes()).decode()
    return [
        {
            "messages": chat(
                "<image>Describe the picture.",
                "A red house with a brown roof stands by a lake; mountains and a yellow sun are behind it.",
            ),
            "images": ["media/scene.jpg"],
        },
        {
            "messages": chat(
                "<image>On which day were most cups sold?", "On Friday: 190.", "And the fewest?", "On Tuesday: 80."
            ),
            "images": ["media/chart.png"],
        },
        {"messages": chat("How much was the total?\n<image>", "11.50."), "images": ["media/receipt.png"]},
        {
            "messages": chat(
                "<image><image>What differs between the two pictures?",
                "The circle and the square have exchanged their colors.",
            ),
            "images": ["media/shapes_a.png", "media/shapes_b.webp"],
        },
        {
            "messages": chat("<image>Which shape is red?", "The circle.", "<image>And here?", "The square."),
            "images": ["media/shapes_a.png", "media/shapes_b.webp"],
        },
        {
            "messages": chat("What kind of building is this?", "A tower with three sweeping roofs, above a lake."),
            "images": "media/photo_temple.jpg",
        },
        {
            "messages": chat("<image>What is in the photo?", "An orange dahlia in front of dark leaves."),
            "images": ["media/photo_flower.jpg"],
        },
        {
            "messages": chat("<image>Which flag is this?", "It looks like the flag of Italy."),
            "images": [f"data:image/png;base64,{flag}"],
        },
        {
            "messages": chat("<image>When is the open day?", "On Saturday from 10 to 4."),
            "images": [{"path": "media/banner.jpg"}],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "media/chart.png"}},
                        {"type": "text", "text": "Give the title of the chart."},
                    ],
                },
                assistant("Cups of coffee sold"),
            ]
        },
    ]


def grounding_rows() -> list[dict[str, object]]:
    cup, book, apple = [40, 120, 160, 200], [190, 128, 300, 190], [330, 134, 390, 210]
    return [
        {
            "messages": chat("<image>Find the <ref-object>.", "<bbox>"),
            "images": ["media/desk.png"],
            "objects": {"ref": ["apple"], "bbox": [apple]},
        },
        {
            "messages": chat("<image>What is at <bbox>?", "A <ref-object>."),
            "images": ["media/desk.png"],
            "objects": {"ref": ["stack of books"], "bbox": [book]},
        },
        {
            "messages": chat("<image>List the objects.", "<ref-object><bbox>, <ref-object><bbox>, <ref-object><bbox>"),
            "images": ["media/desk.png"],
            "objects": {"ref": ["cup", "books", "apple"], "bbox": [cup, book, apple]},
        },
    ]


def audio_rows() -> list[dict[str, object]]:
    return [
        {
            "messages": chat("<audio>Write down what you hear.", SPEECH["weather.flac"][1]),
            "audios": ["media/weather.flac"],
        },
        {
            "messages": chat("<audio>From which platform does the train leave?", "From platform four."),
            "audios": ["media/train.mp3"],
        },
        {"messages": chat("<audio>What is the sum of the last two numbers?", "54."), "audios": "media/numbers.wav"},
        {
            "messages": chat(
                "<audio>How long must it bake?", "Twenty minutes.", "<audio>And what language is this?", "German."
            ),
            "audios": ["media/recipe.ogg", "media/gruss.flac"],
        },
        {"messages": chat("<audio>Does the melody rise or fall?", "It rises."), "audios": ["media/melody.flac"]},
    ]


def video_rows() -> list[dict[str, object]]:
    return [
        {"messages": chat("<video>What happens in the video?", NARRATION), "videos": ["media/balls_spoken.mp4"]},
        {
            "messages": chat("<video>Which color has the ball that bounces?", "Blue."),
            "videos": ["media/balls_silent.mp4"],
        },
        {
            "messages": chat("<video>Where does the red ball go?", "To the right."),
            "videos": [[f"media/frame_{n}.png" for n in range(4)]],
        },
    ]


def omni_rows() -> list[dict[str, object]]:
    return [
        {
            "messages": chat(
                "<image><audio>Does the voice speak about the picture?",
                "No: it speaks of the weather, the picture shows a receipt.",
            ),
            "images": ["media/receipt.png"],
            "audios": ["media/weather.flac"],
        },
        {
            "messages": chat("<video><audio>Is the greeting part of the video?", "No, the video shows two balls."),
            "videos": ["media/balls_silent.mp4"],
            "audios": ["media/gruss.flac"],
        },
        {
            "messages": chat(
                "<image>First a chart.",
                "Cups of coffee by day.",
                "<audio>Then a voice.",
                "A recipe.",
                "<video>And a video.",
                "Two balls.",
                system="Answer in a few words.",
            ),
            "images": ["media/chart.png"],
            "audios": ["media/recipe.ogg"],
            "videos": ["media/balls_silent.mp4"],
        },
    ]


def broken_lines() -> list[str]:
    """One good row among those that must be rejected, each for its own reason."""
    rows: list[dict[str, object] | str] = [
        {"messages": chat("<image>What is this?", "Unknown."), "images": ["media/no_such_file.jpg"]},
        {"messages": chat("<image>What is this?", "Unknown."), "images": ["media/not_an_image.jpg"]},
        {"messages": chat("<audio>What is this?", "Unknown."), "audios": ["media/truncated.flac"]},
        '{"messages": [{"role": "user", "content": "No end',
        {"messages": [{"role": "narrator", "content": "Once upon a time"}, assistant("Yes?")]},
        {"messages": chat("<image><image>Two tags, one picture.", "One is missing."), "images": ["media/scene.jpg"]},
        {"messages": chat("Repeat a lot.", "All work and no play makes a dull row. " * 3000)},
        {"messages": chat("What does <|IMAGE|> mean?", "It is the model's own token.")},
        {"messages": []},
        '"a text, not an object"',
        {"messages": chat("<video>Watch.", "Nothing to see."), "videos": ["media/weather.flac"]},
        {"messages": chat("Is this row good?", "Yes, the only one here.")},
    ]
    return [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]


def write_lines(name: str, rows: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8")


def main() -> None:
    MEDIA.mkdir(exist_ok=True)
    save_pictures()
    save_speech()
    save_videos()
    (MEDIA / "not_an_image.jpg").write_text("This is a text file that calls itself a picture.\n")
    whole = (MEDIA / "weather.flac").read_bytes()
    (MEDIA / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    write_lines("text.jsonl", text_rows())
    write_lines("images.jsonl", image_rows())
    write_lines("grounding.jsonl", grounding_rows())
    write_lines("audio.jsonl", audio_rows())
    write_lines("video.jsonl", video_rows())
    (HERE / "omni.json").write_text(json.dumps(omni_rows(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (HERE / "broken.jsonl").write_text("\n".join(broken_lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
