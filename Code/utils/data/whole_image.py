"""One image as 8-bit pixels, all of it: refused where Pillow would drop bits or pages, transparency on white."""

from PIL import Image, ImageOps

BACKGROUND = (255, 255, 255, 255)  # what shows through where an image is transparent


class NotWhole(ValueError):
    """What is wrong with an image that could be read in part only, and what to do."""


def as_pixels(image: Image.Image, content: bytes, mode: str) -> Image.Image:
    """The opened image, upright, in mode L or RGB. NotWhole where it has more than 8 bits a channel, or several pages.

    content: its file. A phone's MPO has other views of the same picture, of which the first is taken.
    """
    if bits(image, content) > 8 or image.mode.startswith(("I", "F")):
        raise NotWhole("has more than 8 bits a channel; convert it to 8")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # counting n pages of TIFF takes n * n steps
        raise NotWhole("has several pages or frames; save each as a file of its own")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert(mode)


def bits(image: Image.Image, content: bytes) -> int:
    """Bits of a channel in the file, which Pillow's mode does not tell."""
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "PPM" and image.tile:
        most = image.tile[0][3]
        most = most[-1] if isinstance(most, tuple) else 255
        return 16 if isinstance(most, int) and most > 255 else 8
    return 8
